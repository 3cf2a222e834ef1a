"""Decoder as users meet it: how completions end, what is refused, and in which words."""

import json
from pathlib import Path

import pytest
import torch

import rgtg
from rgtg.decoding.decoder import Decoder
from rgtg.decoding.reward_source import TokenScorer
from rgtg.errors import RowError, UserError
from rgtg.models.language import LanguageModel
from rgtg.models.reward import RewardModel
from tests.tolerance import alike

EOS = 2
METHODS = ["pargs", "pargs-greedy", "args", "unguided"]


@pytest.fixture(scope="module")
def decoder(language_dir, reward_dir):
    return Decoder.load(language_dir, reward_dir, "pargs", slots=8)


def test_a_stop_ends_with_eos_which_the_text_leaves_out(decoder, tokenizer_of, language_dir):
    completions = decoder.generate(["hello"], samples=40, max_new_tokens=24)[0]
    stopped = [c for c in completions if c.finish_reason == "stop"]
    assert 5 < len(stopped) < 40
    tokenizer = tokenizer_of(language_dir)
    for completion in completions:
        body = completion.token_ids[:-1] if completion.finish_reason == "stop" else completion.token_ids
        assert (completion.token_ids[-1] == EOS) == (completion.finish_reason == "stop")
        assert EOS not in body
        assert completion.num_tokens == len(completion.token_ids) == len(completion.token_rewards)
        assert completion.num_tokens <= 24
        assert completion.finish_reason == "stop" or completion.num_tokens == 24
        assert completion.text == tokenizer.decode(body, skip_special_tokens=True)


def test_every_eos_of_a_chat_model_stops(tmp_path, make_language, reward_dir):
    directory = Path(make_language(eos_scale=1.0))
    others = [70, 71, 72, 73, 74, 75, 76, 77, 78, 79]
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, *others]}))
    decoder = Decoder.load(str(directory), reward_dir, "unguided", k=0, slots=8)
    completions = decoder.generate(["hello"], samples=40, max_new_tokens=24)[0]
    ends = {c.token_ids[-1] for c in completions if c.finish_reason == "stop"}
    assert ends & set(others)
    assert all(not {EOS, *others} & set(c.token_ids[:-1]) for c in completions)


@pytest.mark.parametrize("method", METHODS)
def test_the_limit_is_exact(language_dir, reward_dir, method):
    decoder = Decoder.load(language_dir, reward_dir, method, slots=3)
    for limit in (1, 2, 7):
        for completion in decoder.generate(["", "abc"], samples=3, max_new_tokens=limit)[1]:
            assert completion.num_tokens == limit or completion.finish_reason == "stop"
            assert completion.num_tokens <= limit


def test_completions_stay_within_the_smaller_context(make_language, make_reward, language_dir):
    short = make_reward(max_position_embeddings=40)
    for language, reward in ((language_dir, short), (make_language(max_position_embeddings=40), None)):
        decoder = Decoder.load(language, reward, "pargs" if reward else "unguided", slots=8)
        for completion in decoder.generate(["a" * 34], samples=8, max_new_tokens=24)[0]:  # 35 tokens with <s>
            assert completion.num_tokens <= 5
            assert completion.num_tokens == 5 or completion.finish_reason == "stop"
        assert decoder.request("a" * 38, samples=1, max_new_tokens=24, seed=0).max_new_tokens == 1
        with pytest.raises(RowError, match="40 tokens, which leaves no room .* context of 40"):
            decoder.request("a" * 39, samples=1, max_new_tokens=24, seed=0)
        with pytest.raises(UserError, match="prompt 1: the prompt has 100 tokens"):
            decoder.generate(["a", "a" * 99])
        assert len(decoder.generate(["a"], max_new_tokens=3)[0]) == 1  # a refused call leaves nothing behind


def test_learned_positions_up_to_the_last_one(make_language, make_reward):
    """A context that is no multiple of the cache's own steps: padding must not reach past the table of positions."""
    models = [make(arch="gpt2", max_position_embeddings=40) for make in (make_language, make_reward)]
    for method in ("pargs", "unguided"):
        decoder = Decoder.load(*models, method, slots=2)
        for completion in decoder.generate(["a" * 34], samples=3, max_new_tokens=24)[0]:
            assert completion.num_tokens == 5 or completion.finish_reason == "stop"
            assert len(completion.token_rewards) == completion.num_tokens
    assert len(decoder.score(["a" * 34], ["b" * 5])[0]) == 5


def test_prompts_as_messages(decoder, tokenizer_of, language_dir):
    message = [{"role": "user", "content": "hi"}]
    request = decoder.request(message, samples=1, max_new_tokens=4, seed=0)
    assert request.prompt_ids == request.reward_prompt_ids == tokenizer_of(language_dir)("u:hi;a:").input_ids
    assert decoder.generate([message], max_new_tokens=4, seed=1)[0][0].num_tokens <= 4


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (None, "null"),
        (3, "of type int"),
        ([], "empty list"),
        ("\ud800", "lone surrogate"),
        ([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}], "no system turn"),
    ],
)
def test_what_is_no_prompt_is_the_rows_own_fault(decoder, prompt, reason):
    with pytest.raises(RowError, match=reason):
        decoder.request(prompt, samples=1, max_new_tokens=4, seed=0)
    with pytest.raises(UserError, match=f"prompt 1: .*{reason}"):
        decoder.generate(["fine", prompt])


def test_no_prompts_make_no_completions(decoder):
    assert decoder.generate([]) == []


@pytest.mark.parametrize(("name", "value"), [("samples", 0), ("max_new_tokens", 0), ("samples", -1)])
def test_nothing_to_generate_is_refused(decoder, name, value):
    with pytest.raises(UserError, match=name):
        decoder.generate(["x"], **{name: value})


@pytest.mark.parametrize(("name", "value"), [("slots", 0), ("k", -1)])
def test_impossible_settings_are_refused(language_dir, reward_dir, name, value):
    with pytest.raises(UserError, match=name):
        Decoder.load(language_dir, reward_dir, **{name: value})


def test_score_is_what_generation_reports(toy_language_dir, toy_reward_dir):
    decoder = Decoder.load(toy_language_dir, toy_reward_dir, "pargs", k=0, slots=4)
    specials = {0, 1}
    prompts = ["ab", "", "ihgfedcba"]
    for prompt, row in zip(prompts, decoder.generate(prompts, samples=9, max_new_tokens=8), strict=True):
        rows = [c for c in row if not specials & set(c.token_ids)]
        assert len(rows) > 1
        for completion, scores in zip(
            rows, decoder.score([prompt] * len(rows), [c.text for c in rows], complete=False), strict=True
        ):
            ended = completion.finish_reason == "stop"
            assert scores == alike(completion.token_rewards[: -1 if ended else None])
            whole = decoder.score([prompt], [completion.text], complete=True)[0]
            assert whole[: len(scores)] == alike(scores)
            assert len(whole) == len(scores) + 1
            if ended:
                assert whole[-1] == alike(completion.reward)


def test_scoring_ends_with_the_context(decoder):
    assert len(decoder.score(["a" * 99], ["b" * 28])[0]) == 28  # 128 tokens with <s>
    with pytest.raises(UserError, match="prompt 1 has 129 tokens .* context is 128"):
        decoder.score(["a", "a" * 99], ["b", "b" * 29])


def test_scoring_needs_a_reward_model(language_dir):
    with pytest.raises(UserError, match="no reward model"):
        Decoder.load(language_dir, method="unguided").score(["a"], ["b"])


@pytest.mark.parametrize("method", METHODS)
def test_the_pad_token_may_be_the_eos(make_language, make_reward, make_tokenizer, method):
    """A common set-up. The reward model gets a token of its own for padding, and the two still fit."""
    tokenizer = make_tokenizer(pad="</s>")
    decoder = Decoder.load(make_language(tokenizer), make_reward(tokenizer), method, slots=8)
    completions = decoder.generate(["hello", ""], samples=8, max_new_tokens=12)
    assert {c.finish_reason for row in completions for c in row} <= {"stop", "length"}
    assert all(len(c.token_rewards) == c.num_tokens for row in completions for c in row)


def test_unknown_method(language_dir):
    with pytest.raises(UserError, match="'parg' is unknown; there are unguided, pargs"):
        Decoder.load(language_dir, method="parg")


@pytest.mark.parametrize("option", ["beta", "temperature", "top_p"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none(language_dir, reward_dir, option, value):
    with pytest.raises(UserError, match=rf"'{option}' is wrong.*{value}"):
        Decoder.load(language_dir, reward_dir, **{option: value})


@pytest.mark.parametrize("method", ["pargs", "pargs-greedy", "args"])
def test_a_guided_method_without_reward_model(language_dir, method):
    with pytest.raises(UserError, match=f"'{method}' needs a reward model"):
        Decoder.load(language_dir, method=method)


def test_models_of_different_tokenizers(language_dir, toy_reward_dir):
    with pytest.raises(UserError, match="another tokenizer"):
        Decoder.load(language_dir, toy_reward_dir)


def test_a_language_model_for_a_reward_model(language_dir):
    """Its head would be new, its rewards all zero, and the run unguided without a word."""
    with pytest.raises(UserError, match="models.reward"):
        Decoder.load(language_dir, language_dir)


def test_a_reward_model_for_a_language_model(reward_dir):
    """Its vocabulary head would be random."""
    with pytest.raises(UserError, match="models.language"):
        Decoder.load(reward_dir, reward_dir)


def test_a_bare_text_is_no_list_of_prompts(decoder):
    with pytest.raises(UserError, match="give a list of prompts"):
        decoder.generate("Once upon")
    with pytest.raises(UserError, match="as many completions as prompts"):
        decoder.score(["one", "two"], ["only one"])
    with pytest.raises(UserError, match="both as lists"):
        decoder.score("one", "two")
    assert decoder.generate([]) == []


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_nan_fail_the_row(language_dir, reward_dir, method):
    language, reward = LanguageModel.load(language_dir), RewardModel.load(reward_dir)
    broken = reward.head.weight if method != "unguided" else language.model.lm_head.weight
    with torch.no_grad():
        broken.fill_(torch.nan)
    target = {"target_reward": 0.0} if method in ("cards", "segments") else {}
    scorer = TokenScorer([reward.eval()], language.tokenizer)
    decoder = Decoder(language, scorer, method, slots=2, **target)
    with pytest.raises(RowError, match="finite"):
        decoder.generate(["x", "y"], samples=2, max_new_tokens=4)
    assert not decoder.engine.busy


@pytest.mark.parametrize("which", ["language", "reward"])
def test_a_token_beyond_the_embeddings_is_the_rows_own(language_dir, reward_dir, which):
    """As a tokenizer of someone's own code may give one; the loading refuses those that can be known."""
    decoder = Decoder.load(language_dir, reward_dir, slots=1, device="cpu")
    tokenizer = decoder.language.tokenizer if which == "language" else decoder.scorer.tokenizer
    tokenizer.add_tokens(["beyond"])
    with pytest.raises(RowError, match="the token id 259, and a model knows 259 tokens"):
        decoder.request("beyond", samples=1, max_new_tokens=1, seed=0)
    assert decoder.request("a", samples=1, max_new_tokens=1, seed=0)


def test_the_library_shows_what_it_offers():
    """In a shell, before anything has been used."""
    assert {"Completion", "Decoder", "UserError", "__version__"} <= set(dir(rgtg))
