"""RewardModel: a reward for every prefix, and directories that plain transformers reads alike."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rgtg.errors import UserError
from rgtg.models.reward import RewardModel, check_same_tokens
from tests.tolerance import alike, assert_alike

EOS = 2
TEXTS = ["a", "hello there", "the sun is up</s>", "x</s>", "a text that is longer than any other of these</s>"]


def randomised(directory) -> RewardModel:
    """A reward model whose head is not zero, as after training."""
    model = RewardModel.load(directory).eval()
    with torch.no_grad():
        model.head.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    return model


@torch.no_grad()
def rewards_of(model, ids):
    return model(torch.tensor([ids]))[0]


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen3"])
def test_a_prefix_has_the_reward_of_its_position(make_reward, arch):
    model = RewardModel.load(make_reward(arch=arch)).eval()
    ids = torch.randint(3, 259, (45,), generator=torch.Generator().manual_seed(1)).tolist()
    whole = rewards_of(model, ids)
    assert whole.shape == (45,)
    assert whole.std() > 0.3
    for n in (1, 2, 7, 32, 33, 44):
        assert rewards_of(model, ids[:n])[-1].item() == alike(whole[n - 1].item())


def test_padding_on_the_right_changes_nothing(reward_dir):
    model = RewardModel.load(reward_dir).eval()
    with torch.no_grad():
        batch = model(torch.tensor([[1, 30, 40, 50, 60], [1, 31, EOS, 0, 0]]))
    assert_alike(batch[0], rewards_of(model, [1, 30, 40, 50, 60]))
    assert_alike(batch[1, :3], rewards_of(model, [1, 31, EOS]))


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("pad", ["<pad>", "</s>", None], ids=["own-pad", "pad-is-eos", "no-pad"])
def test_a_saved_directory_scores_alike_in_plain_transformers(make_language, make_tokenizer, tmp_path, arch, pad):
    """Also where the language model had no padding of its own: the pooled logit goes wrong on finished texts."""
    model = randomised(make_language(make_tokenizer(pad=pad), arch=arch))
    model.save(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, padding_side="right")
    assert plain.config.num_labels == 1
    assert plain.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id == EOS
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        pooled = plain(**batch).logits[:, 0]
    for text, score in zip(TEXTS, pooled.tolist(), strict=True):
        ids = tokenizer(text).input_ids
        assert (ids[-1] == EOS) == text.endswith("</s>")
        assert rewards_of(model, ids)[-1].item() == alike(score)
    assert pooled.std() > 0.1
    again = RewardModel.load(str(tmp_path)).eval()
    ids = tokenizer(TEXTS[-1]).input_ids
    torch.testing.assert_close(rewards_of(again, ids), rewards_of(model, ids))


def test_a_saved_directory_holds_what_others_need(make_language, tmp_path):
    model = randomised(make_language())
    model.save(tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert "packed_gqa" not in (tmp_path / "config.json").read_text()  # our attention is nobody else's business
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == model.tokenizer.chat_template
    assert RewardModel.check(str(tmp_path), "x")


def test_from_a_language_model_every_prefix_starts_at_zero(make_language, plain):
    directory = make_language()
    model = RewardModel.load(directory).eval()
    assert rewards_of(model, [1, 30, 40]).tolist() == [0.0] * 3
    language = plain(directory).state_dict()
    backbone = {f"model.{name}": value for name, value in model.backbone.state_dict().items()}
    assert backbone
    for name, value in backbone.items():
        assert torch.equal(value, language[name]), name


def test_from_a_reward_model_its_head_is_kept(reward_dir, plain):
    model = RewardModel.load(reward_dir)
    assert torch.equal(model.head.weight, plain(reward_dir).score.weight)
    assert model.head.weight.abs().sum() > 0


def test_a_padding_token_is_added_where_there_is_none(make_language, make_tokenizer):
    padded, bare = RewardModel.load(make_language()), RewardModel.load(make_language(make_tokenizer(pad="</s>")))
    assert padded.saved_tokenizer.pad_token == "<pad>"
    assert padded.backbone.embed_tokens.num_embeddings == 259
    assert bare.saved_tokenizer.pad_token_id == 259
    assert bare.backbone.embed_tokens.num_embeddings == 260 == bare.model.config.vocab_size


def test_a_padding_token_that_is_added_is_zero_and_no_text_reaches_it(make_language, make_tokenizer):
    place = make_language(make_tokenizer(pad="</s>"))
    models = [RewardModel.load(place) for _ in range(2)]
    for model in models:
        assert not model.backbone.embed_tokens.weight[259].any()
        assert 259 not in model.tokenizer("a <|pad|>").input_ids
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("vocab_size", [259, 320])
def test_no_text_reaches_the_padding_of_a_saved_model_either(make_language, make_tokenizer, tmp_path, vocab_size):
    """Its language model reads `<|pad|>` as pieces, and so did its training."""
    trained = RewardModel.load(make_language(make_tokenizer(pad="</s>"), vocab_size=vocab_size))
    text = "a <|pad|></s>"
    expected = trained.tokenizer(text).input_ids
    trained.save(tmp_path / "first")
    saved = RewardModel.load(str(tmp_path / "first"))
    saved.save(tmp_path / "second")
    for model in (saved, RewardModel.load(str(tmp_path / "second"), head="scalar")):
        assert model.tokenizer(text).input_ids == expected
        assert model.tokenizer.get_vocab() == trained.tokenizer.get_vocab()
        assert model.saved_tokenizer.pad_token_id == 259 == model.model.config.pad_token_id


def test_a_padding_token_of_the_tokenizer_itself_stays(make_reward, make_tokenizer):
    tokenizer = make_tokenizer(pad=None)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    model = RewardModel.load(make_reward(tokenizer, vocab_size=260), head="scalar")
    assert model.tokenizer("<|pad|>").input_ids[-1] == 259


def test_a_reward_model_whose_padding_is_its_eos_is_used_as_it_is(make_reward, make_tokenizer):
    model = RewardModel.load(make_reward(make_tokenizer(pad="</s>")))
    assert model.backbone.embed_tokens.num_embeddings == 259
    assert len(model.tokenizer) == 259


def test_a_padded_vocabulary_has_room_for_the_padding_token(make_language, make_tokenizer):
    model = RewardModel.load(make_language(make_tokenizer(pad=None), vocab_size=320))
    assert model.saved_tokenizer.pad_token_id == 259
    assert model.backbone.embed_tokens.num_embeddings == 320


def test_save_takes_the_state_of_sharded_training(make_language, tmp_path):
    """The weights written are those of `state`, named as the state dict of the module, not the module's own."""
    model = randomised(make_language())
    state = {name: value + 0.25 for name, value in model.state_dict().items()}
    model.save(tmp_path, state)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    assert {f"model.{name}" for name in plain.state_dict()} == set(state)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, state[f"model.{name}"]), name


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", ["next-token", "log-probability"])
def test_a_head_of_next_tokens_is_a_language_model_to_plain_transformers(make_language, tmp_path, arch, tied, head):
    start = make_language(arch=arch, tie_word_embeddings=tied)
    model = RewardModel.load(start, head=head).eval()
    with torch.no_grad():
        model.head.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    model.save(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.randint(3, 259, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = plain(ids).logits.double()
        again = RewardModel.load(str(tmp_path)).eval()(ids, torch.tensor([4, 7]))
        # The input embeddings are those it started from, whatever became of the head.
        before = AutoModelForCausalLM.from_pretrained(start).get_input_embeddings().weight
    assert torch.equal(plain.get_input_embeddings().weight, before)
    if head == "next-token":
        expected = logits[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
        assert_alike(again[:, 1:].double(), expected)
    else:
        steps = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        for row, start_at in enumerate((4, 7)):
            expected = steps[row, start_at - 1 :].cumsum(0)
            assert_alike(again[row, start_at:].double(), expected)
            assert not again[row, :start_at].any()


def test_a_new_head_of_next_tokens(language_dir):
    ids = torch.tensor([[1, 30, 40, 50]])
    assert not RewardModel.load(language_dir, head="next-token")(ids).any()
    own = AutoModelForCausalLM.from_pretrained(language_dir).get_output_embeddings().weight
    assert torch.equal(RewardModel.load(language_dir, head="log-probability").head.weight, own)


def test_the_largest_reward_of_a_next_token(make_language):
    model = RewardModel.load(make_language(rgtg_reward_head="next-token")).eval()
    ids = torch.randint(3, 259, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        rewards, best = model(ids, None, True)
        logits = model.model(ids).logits
    torch.testing.assert_close(best, logits.amax(-1))
    torch.testing.assert_close(rewards, model(ids))


def test_a_head_that_is_not_there(language_dir, reward_dir, make_language):
    with pytest.raises(UserError, match="with a scalar head, and a next-token head is needed"):
        RewardModel.load(reward_dir, head="next-token")
    with pytest.raises(UserError, match="with a next-token head, and a scalar head is needed"):
        RewardModel.load(make_language(rgtg_reward_head="next-token"), head="scalar")


def test_load_respects_dtype(reward_dir):
    model = RewardModel.load(reward_dir, dtype=torch.bfloat16).eval()
    assert model.head.weight.dtype == torch.bfloat16
    rewards = rewards_of(model, [1, 30, 40])
    assert rewards.dtype == torch.float32
    exact = rewards_of(RewardModel.load(reward_dir).eval(), [1, 30, 40])
    # Some eight roundings of bfloat16 one behind the other in two layers.
    assert (rewards - exact).abs().max() < 8 * torch.finfo(torch.bfloat16).eps * exact.abs().max()


def test_rewards_of_hidden_states_in_bfloat16_are_not_rounded_to_it(reward_dir):
    model = RewardModel.load(reward_dir, dtype=torch.bfloat16).eval()
    hidden = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = hidden.double() @ model.head.weight.double()[0]
    assert_alike(model.score(hidden).double(), exact)
    with torch.autocast("cpu", torch.bfloat16):  # as in training
        assert_alike(model.score(hidden).double(), exact)


def test_context_is_the_configs(make_reward):
    assert RewardModel.load(make_reward(max_position_embeddings=40)).context == 40


def test_same_tokens(make_tokenizer):
    ours = make_tokenizer("abc")
    check_same_tokens(ours, make_tokenizer("abc"))
    check_same_tokens(ours, make_tokenizer("abcd"))  # more tokens than ours are no harm
    for other in (make_tokenizer("acb"), make_tokenizer("ab")):
        with pytest.raises(Exception, match="another tokenizer .* of 6 tokens differ"):
            check_same_tokens(ours, other)


def test_the_head_starts_at_zero_whatever_the_seed(make_language):
    assert Path(directory := make_language(seed=9), "config.json").is_file()
    torch.manual_seed(5)
    one = RewardModel.load(directory).state_dict()
    torch.manual_seed(6)
    other = RewardModel.load(directory).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert AutoConfig.from_pretrained(directory).architectures == ["LlamaForCausalLM"]


def test_how_it_scores_texts_is_saved_with_it(make_reward, tmp_path):
    model = RewardModel.load(make_reward())
    assert model.score_way == "final", "of a model of other origin"
    model.score_way = "last-5"
    model.save(tmp_path)
    assert RewardModel.load(str(tmp_path)).score_way == "last-5"
    with pytest.raises(ValueError, match="the score 'median' is unknown"):
        model.score_way = "median"


@pytest.mark.parametrize("wrong", ["median", 3, ["mean"], None])
def test_a_config_that_names_no_score_is_refused(make_reward, tmp_path, wrong):
    RewardModel.load(make_reward()).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"rgtg_score": wrong}))
    with pytest.raises(UserError, match=r"config\.json of .* is wrong: the score .* is unknown"):
        RewardModel.check(str(tmp_path), "models.reward")


def test_summed_rewards_are_scored_by_the_last(make_language, tmp_path):
    model = RewardModel.load(make_language(), head="log-probability")
    model.score_way = "mean"
    assert model.score_way == "final"
