import pytest
import torch

from pipelines.train_reward import _with_rate
from rgtg.models.reward import RewardModel
from rgtg.training.learning_rate import default_learning_rate
from rgtg.training.reward_trainer import RewardTrainer
from rgtg.training_settings import TrainReward


@pytest.mark.parametrize(
    ("parameters", "lora", "rate"),
    [
        (1_000, False, 1e-3),
        (500_000, False, 5e-4),
        (10_000_000, False, 3e-4),
        (100_000_000, False, 2.1e-4),
        (100_000_001, False, 1e-5),
        (7_000_000_000, False, 1e-5),
        (7_000_000_000, True, 1e-4),
        (500_000, True, 5e-3),
    ],
)
def test_the_rule(parameters, lora, rate):
    assert default_learning_rate(parameters, lora) == pytest.approx(rate)


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_the_library_takes_the_same_rate_as_the_job(language_dir, lora_rank):
    settings = TrainReward(lora_rank=lora_rank)
    by_job = _with_rate(settings, language_dir, False, {}).learning_rate
    model = RewardModel.load(language_dir)
    trainer = RewardTrainer(model, settings, 10, torch.device("cpu"))
    assert trainer.distributed.learning_rate == by_job


def test_a_rate_that_is_given_counts_and_a_run_goes_on_with_its_own(language_dir):
    assert _with_rate(TrainReward(learning_rate=2e-5), language_dir, False, {}).learning_rate == 2e-5
    before = {"train_reward.learning_rate": 1e-5}
    assert _with_rate(TrainReward(), language_dir, False, before).learning_rate == 1e-5
