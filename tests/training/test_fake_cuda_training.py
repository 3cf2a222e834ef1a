"""A training step on a CUDA device that is not there: kernels, devices, and how often the host waits for a value."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rgtg.models.reward import RewardModel
from rgtg.preferences.tokenized import TokenizedPair
from rgtg.training.reward_trainer import RewardTrainer
from rgtg.training_settings import TrainReward
from tests.fake_cuda import CARD, MODELS, fake_cuda, fake_model

PAIRS = [TokenizedPair([1] * 5, [3] * n, [4] * (n + 7), 0) for n in (3, 40, 41, 90, 91)]


def step(card, tokenizer, heads, **settings):
    """The learner, what a step of it gave, and the values that it waited for on the card."""
    settings = TrainReward(**settings)
    kind = settings.head_kind
    auto = AutoModelForSequenceClassification if kind == "scalar" else AutoModelForCausalLM
    model = RewardModel(fake_model(auto, *heads, len(tokenizer) + 1, torch.float32), tokenizer, kind)
    learner, waits = RewardTrainer(model, settings, 10, CARD), []

    def tell(tensor):
        waits.extend([tensor] * (tensor.device == CARD))
        value = 1.0 if tensor.is_floating_point() else tensor.dtype == torch.bool or 1
        return [value] * len(tensor) if tensor.ndim else value

    card.tell = tell
    return learner, learner.train_step(PAIRS), waits


# Of every architecture, and with all heads.
TRAINED = [model for model in MODELS if model[0] in ("llama", "gpt2") or model[1:] == (14, 2)]


@pytest.mark.parametrize("heads", TRAINED, ids=lambda heads: "-".join(map(str, heads)))
def test_models_train(toy_tokenizer, heads):
    with fake_cuda() as card:
        learner, result, waits = step(card, toy_tokenizer, heads, micro_batch_size=2)
    assert result.pairs == 1.0  # what it was told
    assert {parameter.device for parameter in learner.distributed.model.parameters()} == {CARD}
    assert set(card.kernels) == {"flash"}
    assert len(card.kernels) == 3, "a forward for every two pairs"
    assert len(waits) == 2, "for the norm of the gradient, and for the figures, however many forwards there are"


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "float32"},
        {"objective": "full", "gradient_checkpointing": True},
        {"objective": "rad", "after_end": "eos"},
        {"objective": "fudge"},
        {"objective": "farma"},
        {"objective": "genarm"},
        {"lora_rank": 2},
        {"average": "pair"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_ways_to_train(toy_tokenizer, settings):
    with fake_cuda() as card:
        _, _, waits = step(card, toy_tokenizer, ("llama", 8, 4), **settings)
    assert set(card.kernels) == {"efficient" if settings.get("precision") == "float32" else "flash"}
    assert len(waits) == 2


def test_batches_have_few_widths(toy_tokenizer):
    """None beyond the context, where positions end."""
    with fake_cuda() as card:
        learner, *_ = step(card, toy_tokenizer, ("llama", 8, 4))
    for length, width in ((3, 64), (64, 64), (65, 128), (1000, 1024), (1023, 1024)):
        assert learner._width([TokenizedPair([1], [3] * (length - 1), [4], 0)]) == width
