"""The engine's own steps on a CUDA device that is not there: strides, devices, and what waits for a value."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rgtg.decoding.cuda_graphs import Watch
from rgtg.decoding.decoder import Decoder
from rgtg.decoding.engine import Engine
from rgtg.decoding.prefill import PrefixCache
from rgtg.decoding.reward_source import TokenScorer
from rgtg.models.language import LanguageModel
from rgtg.models.reward import RewardModel
from rgtg.models.text_reward import TextReward
from tests.fake_cuda import CARD, MODELS, fake_cuda, fake_model

SHORT, LONG = "abc", "a" * 300  # read with others, padded; and alone, in two chunks
SLOTS = 8
NEW_TOKENS = 2


class Told:
    """What the host is told: every row goes on to its limit, and all other values of a kind are the same."""

    def __init__(self, engine):
        self.engine = engine

    def __call__(self, tensor):
        engine, steps = self.engine, [self._steps(row) for row in range(self.engine.slots)]
        if tensor is engine.steps:
            return steps
        if tensor is engine.running:
            return [n < NEW_TOKENS for n in steps]
        if tensor.dtype == torch.bool and tensor.ndim and tensor is not engine.stopped and tensor is not engine.broken:
            return [n == NEW_TOKENS for n in steps]  # rows that ended
        return constant(
            tensor.shape, 0.5 if tensor.is_floating_point() else False if tensor.dtype == torch.bool else 2
        )

    def _steps(self, row):
        owner = self.engine.owners[row]
        return self.engine.language.slots.reached[row] + 1 - len(owner[0].prompt_ids) if owner else 0


def constant(shape, value):
    return [constant(shape[1:], value)] * shape[0] if shape else value


def watched(compute, card):
    """Steps that are told nothing, and wait for nothing."""

    def step():
        tell, card.tell = card.tell, None
        with Watch() as watch:
            logits = compute()
        card.tell = tell
        assert watch.asked is None, f"a step waits for {watch.asked}"
        assert logits.device == CARD
        return logits

    return step


def decode(card, tokenizer, method, heads, prompts, samples, kinds=("scalar",), dtype=torch.bfloat16, **options):
    """Completions on the card, by the decoder's own steps.

    `heads` are architecture, query heads and KV heads of all models, `kinds` the heads of the reward models.
    """

    def model(kind):
        auto = AutoModelForSequenceClassification if kind == "scalar" else AutoModelForCausalLM
        return fake_model(auto, *heads, len(tokenizer) + 1, dtype)

    rewards = [RewardModel(model(kind), tokenizer, kind) for kind in kinds]
    scorer = TokenScorer(rewards, tokenizer) if rewards else None
    language = LanguageModel(model("language"), tokenizer)
    decoder = Decoder(language, scorer, method, slots=SLOTS, cuda_graphs=False, **options)
    engine = decoder.engine
    engine._compute, card.tell = watched(engine._compute, card), Told(engine)
    return decoder.generate(prompts, samples=samples, max_new_tokens=NEW_TOKENS)


BY_HEADS = {"ids": lambda heads: "-".join(map(str, heads))}


@pytest.mark.parametrize("heads", MODELS, **BY_HEADS)
def test_models_decode(toy_tokenizer, heads):
    """Steps of a language model and of candidates, in rows of which one is refilled."""
    with fake_cuda() as card:
        (row,) = decode(card, toy_tokenizer, "pargs", heads, [SHORT], SLOTS + 1)
    assert [len(c.token_ids) for c in row] == [NEW_TOKENS] * (SLOTS + 1)
    assert set(card.kernels) <= {"flash", "efficient"}


METHODS = {
    "unguided": [],
    "pargs-greedy": ["scalar"],
    "rad": ["scalar"],
    "pargs": ["scalar", "scalar"],
    "farma": ["next-token"],
    "genarm": ["log-probability"],
    "best-of-n": ["scalar"],
    "pargs-best-of-n": ["scalar"],
    "cd-blockwise": ["scalar"],
    "cards": ["scalar"],
}


@pytest.mark.parametrize("heads", [("llama", 8, 4), ("gpt2", 12, 12)], **BY_HEADS)
@pytest.mark.parametrize("method", METHODS)
def test_methods_decode(toy_tokenizer, method, heads):
    options = {"target_reward": 1.0} if method == "cards" else {}
    options |= {"dtype": torch.float32} if method == "unguided" else {}
    options |= {"proposals": 2} if method in ("best-of-n", "pargs-best-of-n", "cd-blockwise") else {}
    with fake_cuda() as card:
        rows = decode(card, toy_tokenizer, method, heads, [SHORT, LONG], 2, METHODS[method], **options)
    assert all(len(c.token_ids) <= NEW_TOKENS for row in rows for c in row)
    assert set(card.kernels) <= {"flash", "efficient"}


@torch.inference_mode()
@pytest.mark.parametrize("heads", MODELS, **BY_HEADS)
def test_long_prompts_are_read(toy_tokenizer, heads):
    """In chunks, of which the second one sees the first one."""
    with fake_cuda() as card:
        model = fake_model(AutoModelForCausalLM, *heads, len(toy_tokenizer), torch.float32)
        read = PrefixCache(model.base_model, SLOTS).get([3] * len(LONG))
    assert read.keys.shape == (1, heads[2], len(LONG), 16)
    assert read.keys.device == CARD
    assert set(card.kernels) == {"efficient"}


@pytest.mark.parametrize(("arch", "changes"), [("bert", {}), ("llama", {"num_key_value_heads": 2})])
def test_texts_are_read(toy_tokenizer, arch, changes):
    """By classifiers of any architecture, with the attention of transformers."""
    config = AutoConfig.for_model(arch, hidden_size=64, num_attention_heads=4, num_hidden_layers=1, **changes)
    config.num_labels, config.vocab_size, config.pad_token_id = 1, len(toy_tokenizer), 0
    with fake_cuda() as card:
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16).eval().to(CARD)
        card.tell = lambda tensor: constant(tensor.shape, tensor.dtype == torch.bool or 0.5)
        assert TextReward(model, toy_tokenizer).score_texts([SHORT, LONG]) == [0.5, 0.5]
    assert set(card.kernels) == {"efficient"}


FAULTS = {
    "a value": (lambda x: x.sum().item(), "_local_scalar_dense"),
    "a decision": (lambda x: x if x.sum() > 0 else -x, "_local_scalar_dense"),
    "a list": (lambda x: x.tolist(), "_local_scalar_dense"),
    "a mask": (lambda x: x[x > 0], "nonzero"),
    "values at a mask": (lambda x: x.index_put_((x > 0,), x[0]), "index_put_"),
    "two devices": (lambda x: x + torch.zeros(x.shape), "found at least two devices"),
    "from the host": (lambda x: x + torch.tensor([0], device=CARD), "_to_copy"),
    "to the host": (lambda x: x.cpu(), "_to_copy"),
    "a layout": (lambda x: x.expand(2, *x.shape).view(-1), "view"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_step_is_seen(toy_tokenizer, fault, monkeypatch):
    act, said = FAULTS[fault]
    record = Engine._record

    def faulty(self, tokens, rewards, choice):
        act(tokens.clone())
        return record(self, tokens, rewards, choice)

    monkeypatch.setattr(Engine, "_record", faulty)
    with fake_cuda() as card, pytest.raises(Exception, match=said):
        decode(card, toy_tokenizer, "unguided", ("llama", 8, 4), [SHORT], 1, [])
