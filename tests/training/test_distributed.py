"""What every trainer shares, by the smallest of trainers: a language model and its cross-entropy."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from rgtg.errors import UserError
from rgtg.training.distributed import DistributedModel, decoder_layers, warmup_cosine
from rgtg.training_settings import TrainReward

IDS = torch.tensor([[1, 40, 50, 60, 2], [1, 70, 80, 90, 2]])


def distributed(language_dir, num_steps=10, **settings):
    model = AutoModelForCausalLM.from_pretrained(language_dir, dtype=torch.float32).train()
    settings = TrainReward(**{"learning_rate": 1e-2, "precision": "float32", **settings})
    return DistributedModel(model, model, settings, num_steps, torch.device("cpu"))


def train(it, micro_batches=(IDS,)):
    """One step on the mean loss of all rows; it, and the gradients' norm."""
    total, count = 0.0, sum(map(len, micro_batches))
    for i, ids in enumerate(micro_batches):
        with it.micro_batch(last=i == len(micro_batches) - 1):
            loss = it.model(ids, labels=ids).loss * len(ids)
            (loss * it.world / count).backward()
        total += float(loss.detach())
    return total / count, it.optimizer_step()


def test_a_loss_of_any_trainer_goes_down(language_dir):
    it = distributed(language_dir)
    losses = [train(it)[0] for _ in range(10)]
    assert losses[-1] < 0.9 * losses[0]
    assert it.step == 10


def test_gradients_of_micro_batches_add_up(language_dir):
    _, whole = train(distributed(language_dir))
    _, parts = train(distributed(language_dir), IDS.split(1))
    assert parts == pytest.approx(whole, rel=1e-5)


def test_training_resumes_from_a_state(language_dir, make_language, tmp_path):
    through = distributed(language_dir)
    first = distributed(language_dir)
    figures = [train(through) for _ in range(4)]
    assert [train(first) for _ in range(2)] == figures[:2]
    torch.save(first.state(), tmp_path / "state.pt")
    second = distributed(make_language(seed=5))  # other weights, to be replaced
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.step == 2
    assert [train(second) for _ in range(2)] == figures[2:]


def test_gradients_are_clipped_and_their_norm_is_that_of_before(language_dir):
    free, clipped, seen = (
        distributed(language_dir, max_grad_norm=1e9),
        distributed(language_dir, max_grad_norm=0.1),
        [],
    )

    def look(*_):
        seen.append(math.sqrt(sum(float(p.grad.square().sum()) for p in clipped.module.parameters())))

    clipped.optimizer.register_step_pre_hook(look)
    assert train(free)[1] == train(clipped)[1] > 0.1
    assert seen == [pytest.approx(0.1, rel=1e-3)]


def test_a_gradient_that_is_not_finite_ends_training(language_dir):
    it = distributed(language_dir)
    with torch.no_grad():
        next(it.module.parameters())[0, 0] = torch.nan
        it.module.lm_head.weight[0, 0] = torch.nan
    before = {name: value.clone() for name, value in it.module.state_dict().items()}
    with pytest.raises(UserError, match="the gradient of step 1 is not finite"):
        train(it)
    for name, value in it.module.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0, equal_nan=True, msg=name)
    assert it.step == 0


def test_one_worker_needs_one_forward_and_no_sums(language_dir):
    for strategy in ("ddp", "fsdp"):
        it = distributed(language_dir, strategy=strategy)
        assert [it.num_forwards(needed) for needed in (0, 1, 3)] == [1, 1, 3]
        assert it.sum(torch.tensor(2.0)) == 2


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_the_layers_of_a_transformer(make_language, arch):
    model = AutoModelForCausalLM.from_pretrained(make_language(arch=arch))
    assert len(decoder_layers(model)) == model.config.num_hidden_layers


def rates(num_steps, warmup):
    return [warmup_cosine(step, num_steps, warmup) for step in range(num_steps)]


def test_the_schedule_warms_up_and_falls_to_a_tenth():
    found = rates(20, 0.25)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[5] == pytest.approx(1.0)
    assert found == sorted(found[:5]) + sorted(found[5:], reverse=True)
    assert found[12] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 7 / 15)))
    assert 0.1 < found[-1] < 0.12
    assert warmup_cosine(20, 20, 0.25) == pytest.approx(0.1)
    assert warmup_cosine(30, 20, 0.25) == pytest.approx(0.1)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_the_schedule_of_very_short_training(num_steps):
    assert rates(num_steps, 0.0)[0] == 1.0
    assert all(0.1 <= rate <= 1.0 for rate in rates(num_steps, 0.9))


def test_the_optimizer_steps_at_the_rate_of_the_schedule(language_dir):
    it, seen = distributed(language_dir, num_steps=4, warmup=0.5, learning_rate=1e-3), []
    it.optimizer.register_step_pre_hook(lambda *_: seen.append(it.optimizer.param_groups[0]["lr"]))
    for _ in range(4):
        train(it)
    assert seen == pytest.approx([1e-3 * rate for rate in rates(4, 0.5)])
