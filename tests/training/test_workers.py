"""Two training workers (gloo, on the CPU) do together what one does alone."""

import faulthandler
from dataclasses import asdict
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from rgtg.models.reward import RewardModel
from rgtg.preferences.tokenized import TokenizedPair, common_length
from rgtg.training.reward_trainer import RewardTrainer
from rgtg.training_settings import TrainReward
from tests.tolerance import EPS, ROUNDING

EOS = 2
STRATEGIES = ("ddp", "fsdp")

# Adam divides a gradient by its size: one that is all rounding would move a parameter as far as any other. Not with an
# eps as large as gradients are (their norm is clipped to 1): a difference d of them becomes at most d * rate / eps.
RATE, ADAM_EPS = 1e-3, 1e-2

# The pairs of each step, by worker: equal shares; then shares of one, several and no micro-batches.
EVEN = [(range(0, 4), range(4, 8)), (range(8, 12), range(12, 16)), (range(16, 20), range(20, 24))]
RAGGED = [(range(0, 5), range(5, 8)), (range(8, 13), range(13, 14)), (range(14, 18), range(18, 18))]
SCENARIOS = {
    "prefix": (EVEN, {}),
    "pair, micro-batches": (RAGGED, {"average": "pair", "micro_batch_size": 2}),
    "full, micro-batches": (RAGGED, {"objective": "full", "micro_batch_size": 2}),
    "adapters": (EVEN, {"lora_rank": 2}),
}


def pair(i):
    g = torch.Generator().manual_seed(i)
    sides = [torch.randint(3, 30, (n,), generator=g).tolist() for n in torch.randint(1, 9, (2,), generator=g).tolist()]
    prompt = [1, *torch.randint(3, 30, (i % 5,), generator=g).tolist()]
    return TokenizedPair(prompt, [*sides[0], EOS], [*sides[1], EOS], common_length(*sides))


def learner(reward_dir, **settings):
    torch.manual_seed(0)  # of adapters, which begin at random
    reward_model = RewardModel.load(reward_dir)
    settings = {"learning_rate": RATE, "precision": "float32", "batch_size": 8, "warmup": 0.5, **settings}
    it = RewardTrainer(reward_model, TrainReward(**settings), 4, torch.device("cpu"))
    for group in it.distributed.optimizer.param_groups:
        group["eps"] = ADAM_EPS
    return it


def train(reward_dir, steps, settings, hand_over):
    """Train on `steps`, go on with a new learner from the state that `hand_over` gives back, and evaluate.

    `steps` are this worker's pairs. Returns what is to compare: results, parameters, accuracy.
    """
    first = learner(reward_dir, **settings)
    results = [asdict(first.train_step([pair(i) for i in step])) for step in steps[:2]]
    second = learner(reward_dir, **settings)
    second.restore(hand_over(first.state()))
    results += [asdict(second.train_step([pair(i) for i in step])) for step in steps[2:]]
    accuracy = second.evaluate([[pair(i) for i in steps[0]], [pair(i) for i in steps[1]]])
    return {"results": results, "parameters": second.state()["model"], "accuracy": accuracy}


def through_a_file(file, state):
    if dist.get_rank() == 0:
        torch.save(state, file)
    dist.barrier()
    state = torch.load(file, weights_only=True)
    dist.barrier()
    return state


def work(rank, folder, reward_dir):
    faulthandler.enable()  # a worker that crashes says where
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=600)
    )
    outcome = {
        (strategy, name): train(
            reward_dir,
            [shares[rank] for shares in steps],
            {"strategy": strategy, **settings},
            partial(through_a_file, folder / "state.pt"),
        )
        for strategy in STRATEGIES
        for name, (steps, settings) in SCENARIOS.items()
    }
    torch.save(outcome, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone(reward_dir):
    """One worker with the pairs of both."""
    return {
        name: train(reward_dir, [[*one, *other] for one, other in steps], settings, lambda state: state)
        for name, (steps, settings) in SCENARIOS.items()
    }


@pytest.fixture(scope="module")
def together(tmp_path_factory, reward_dir):
    """The outcome of each of two workers."""
    folder = tmp_path_factory.mktemp("workers")
    multiprocessing.spawn(work, (folder, reward_dir), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_parameters_are_those_of_one_worker_with_all_pairs(alone, together, reward_dir, strategy, name):
    expected, found = alone[name]["parameters"], together[0][strategy, name]["parameters"]
    assert expected.keys() == found.keys()
    start = learner(reward_dir, **SCENARIOS[name][1]).reward_model.state_dict()
    bound = 3 * ROUNDING * RATE / ADAM_EPS  # of three steps; 2e-6
    for parameter, value in expected.items():
        # ... and the rounding of the parameters themselves, twice a step: by the decay and by the step
        torch.testing.assert_close(found[parameter], value, atol=bound, rtol=6 * EPS, msg=parameter)
    assert max((value - start[key]).abs().max() for key, value in expected.items()) > 100 * bound


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_figures_are_those_of_all_pairs_on_every_worker(alone, together, strategy, name):
    for worker in together:
        for ours, theirs in zip(worker[strategy, name]["results"], alone[name]["results"], strict=True):
            assert ours == pytest.approx(theirs, rel=2 * ROUNDING, abs=2 * ROUNDING)  # rewards of twice the size


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_accuracy_is_summed_over_the_workers(alone, together, strategy):
    for name in SCENARIOS:
        for worker in together:
            assert worker[strategy, name]["accuracy"] == alone[name]["accuracy"]
    assert alone["prefix"]["accuracy"]["pairs"] == {"full": 16}
