"""Reward models that read text, and several of them as one, against the plain loop and against sums by hand."""

from dataclasses import dataclass

import pytest
import torch
from tokenizers import Regex, pre_tokenizers

from rgtg.chat import prompt_id
from rgtg.decoding.decoder import Decoder
from rgtg.decoding.token_rule import gumbel, row_key
from rgtg.errors import RowError, UserError
from rgtg.models.ensemble import combine
from rgtg.models.reward import RewardModel
from rgtg.text_score import score
from tests.decoding.test_decoder_reference import PROMPTS, Reference, compare, without_padding
from tests.tolerance import alike


@dataclass
class TextReference(Reference):
    """The reward of the decoded text, read by plain transformers with the reward model's own tokenizer."""

    own: object = None
    ours: object = None

    @torch.no_grad()
    def reward_of_text(self, prompt, ids):
        text = prompt + self.ours.decode(ids, skip_special_tokens=True).rstrip("\ufffd")
        return self.classifier(**self.own(text, return_tensors="pt")).logits[0, 0].item()


@pytest.mark.parametrize("arch", ["bert", "qwen2"])
def test_a_reward_model_with_another_tokenizer_reads_every_candidates_text(
    make_reward, make_tokenizer, plain, tokenizer_of, language_dir, arch
):
    reward_dir = make_reward(make_tokenizer("abcdefghijklmnopqrstuvwxyz .,:;!?", bos=False), arch=arch, seed=4)
    decoder = Decoder.load(language_dir, reward_dir, "pargs", reward_reads="text", k=4, beta=1.0, slots=3)
    ours = tokenizer_of(language_dir)
    models = plain(language_dir), without_padding(plain(reward_dir))
    reference = TextReference(*models, ours.eos_token_id, own=tokenizer_of(reward_dir), ours=ours)
    prompts = [PROMPTS[0], *PROMPTS[2:5]]  # without the empty one: of it, the encoder has nothing to read
    for prompt, row in zip(prompts, decoder.generate(prompts, samples=2, max_new_tokens=6, seed=3), strict=True):
        for sample, completion in enumerate(row):
            ids, rewards = [], []
            while len(ids) < 6 and 2 not in ids:
                logprobs = reference.logprobs(ours(prompt).input_ids + ids)
                among = logprobs.argsort(descending=True)[:4]
                seen = torch.tensor([reference.reward_of_text(prompt, [*ids, v]) for v in among.tolist()])
                key = row_key(3, prompt_id(prompt), sample)
                noise = gumbel(torch.tensor([key]), torch.tensor([len(ids)]), among[None])[0]
                choice = (logprobs[among] + seen + noise).argmax()
                ids.append(among[choice].item())
                rewards.append(seen[choice].item())
            assert completion.token_ids == ids
            assert completion.token_rewards == alike(rewards)
            assert completion.reward_calls == 4 * len(ids)


def test_text_that_is_read_whole_has_one_reward(make_reward, make_tokenizer, language_dir):
    reward_dir = make_reward(make_tokenizer("abcdefgh ", bos=False), arch="bert")
    decoder = Decoder.load(language_dir, reward_dir, "best-of-n", reward_reads="text", proposals=3, slots=8)
    (completion,) = decoder.generate(["some text"], max_new_tokens=6)[0]
    assert completion.token_rewards is None
    assert completion.reward_calls == 3
    assert decoder.score(["some text"], [completion.text]) == [[alike(completion.reward)]]


# Of this many, the tokenizer below takes as many letters as there are, and gives up where anything follows.
LETTERS = "a" * 40


@pytest.fixture
def panicking(make_reward, make_tokenizer) -> str:
    """A reward model whose tokenizer panics on some texts."""
    tokenizer = make_tokenizer("abcdefghijklmnopqrstuvwxyz .,!", bos=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"^(a+)+$"), "isolated")
    return make_reward(tokenizer, arch="bert", seed=4)


@pytest.mark.parametrize("method", ["pargs", "best-of-n", "cards"])
def test_a_text_that_a_tokenizer_fails_on_harms_its_own_row_alone(panicking, language_dir, method):
    options = {"target_reward": 0.0} if method == "cards" else {}
    decoder = Decoder.load(language_dir, panicking, method, reward_reads="text", k=4, slots=3, **options)
    settings = {"samples": 2, "max_new_tokens": 6, "seed": 3}
    with pytest.raises(RowError, match="the tokenizer fails on the text"):
        decoder.request(LETTERS + "!", **settings)
    requests = [decoder.request(prompt, **settings) for prompt in ("one", LETTERS, "two")]
    decoder.engine.run(requests)
    with pytest.raises(RowError):
        decoder.completions(requests[1])
    alone = [decoder.generate([prompt], **settings)[0] for prompt in ("one", "two")]
    assert [decoder.completions(requests[i]) for i in (0, 2)] == alone


def test_another_tokenizer_is_refused_unless_text_is_read(make_reward, make_tokenizer, language_dir):
    other = make_reward(make_tokenizer("abcdefgh "))
    with pytest.raises(UserError, match="reward_reads=text"):
        Decoder.load(language_dir, other, "pargs")
    with pytest.raises(UserError, match="scalar head"):
        Decoder.load(language_dir, other, "farma", reward_reads="text")


@dataclass
class EnsembleReference(Reference):
    others: tuple = ()

    def reward(self, prompt_ids, response_ids):
        row = torch.tensor([prompt_ids + response_ids])
        with torch.no_grad():
            models = self.classifier, *self.others
            rewards = [m(row, attention_mask=torch.ones_like(row)).logits[0, 0] for m in models]
        mean = sum(rewards) / len(rewards)
        deviation = (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5
        return (mean - 0.5 * deviation).item()


def test_an_ensemble_guides_by_its_combined_reward(make_reward, plain, tokenizer_of, language_dir, reward_dir):
    places = [reward_dir, make_reward(seed=11, arch="gpt2"), make_reward(seed=12)]
    models = [without_padding(plain(place)) for place in places]
    tokenizer = tokenizer_of(language_dir)
    reference = EnsembleReference(plain(language_dir), models[0], tokenizer.eos_token_id, others=tuple(models[1:]))
    options = {"combine": "lower-bound", "bound_width": 0.5}
    decoder = Decoder.load(language_dir, places, "pargs", k=4, beta=1.5, slots=5, **options)
    compare(reference, decoder, tokenizer, PROMPTS[:4], samples=2, max_new_tokens=6, seed=3)
    (completion,) = decoder.generate(["count"], max_new_tokens=3)[0]
    assert completion.reward_calls == 3 * 4 * completion.num_tokens
    scored = decoder.score(["hi"], ["you"])[0][-1]
    assert scored == alike(reference.reward([1], tokenizer("hiyou").input_ids[1:]))


def test_how_rewards_are_combined():
    rewards = torch.tensor([[1.0, 2.0], [3.0, 2.0], [5.0, -1.0]])
    assert combine(rewards, "mean").tolist() == [3.0, 1.0]
    assert combine(rewards, "min").tolist() == [1.0, -1.0]
    bound = combine(rewards, "lower-bound", 2.0).tolist()
    assert bound == pytest.approx([3.0 - 2 * (8 / 3) ** 0.5, 1.0 - 2 * 2**0.5])


def scoring(directory, way, tmp_path):
    """A copy of a reward model that scores texts in this way."""
    model = RewardModel.load(directory)
    model.score_way = way
    model.save(tmp_path / way)
    return str(tmp_path / way)


@pytest.mark.parametrize("way", ["final", "mean", "linear", "last-3"])
@pytest.mark.parametrize("method", ["pargs", "unguided"])
def test_completions_have_the_score_that_the_reward_models_config_names(
    language_dir, reward_dir, tmp_path, way, method
):
    decoder = Decoder.load(language_dir, scoring(reward_dir, way, tmp_path), method, slots=4)
    other = Decoder.load(language_dir, reward_dir, method, slots=4, score=way)
    options = {"samples": 2, "max_new_tokens": 8, "seed": 1}
    rows, overridden = (d.generate(["hello"], **options)[0] for d in (decoder, other))
    for completion in rows:
        assert completion.score == score(completion.token_rewards, way)
        assert completion.reward == completion.token_rewards[-1]
    assert rows == overridden


def test_models_that_score_in_unlike_ways_are_scored_by_the_last_reward(language_dir, reward_dir, tmp_path):
    mean, linear = (scoring(reward_dir, way, tmp_path) for way in ("mean", "linear"))
    for rewards, expected in (([mean, mean], "mean"), ([mean, linear], "final")):
        assert Decoder.load(language_dir, rewards, slots=2).score_way == expected


def test_best_of_n_is_the_best_by_score(language_dir, reward_dir):
    """The attempts of one search are those of one with fewer proposals, and more: the best so far."""
    prompts = ["hello", "a", "b", "c"]
    kept = {}
    for way in ("final", "mean"):
        by_n = []
        for n in (1, 2, 4, 8):
            decoder = Decoder.load(language_dir, reward_dir, "best-of-n", proposals=n, slots=4, score=way, k=0)
            by_n.append([row[0] for row in decoder.generate(prompts, max_new_tokens=8, seed=2)])
        for completions in zip(*by_n, strict=True):
            scores = [score(c.token_rewards, way) for c in completions]
            assert scores == sorted(scores), "more proposals are never worse"
        kept[way] = by_n[-1]
    by_mean = [[score(c.token_rewards, "mean") for c in kept[way]] for way in ("mean", "final")]
    assert all(a >= b for a, b in zip(*by_mean, strict=True))
    assert by_mean[0] != by_mean[1]
