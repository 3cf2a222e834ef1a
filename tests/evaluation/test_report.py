import re

import pytest
import torch

from rgtg.chat import encode_prompt, encode_response
from rgtg.config import Config, Generate, Preferences
from rgtg.evaluation.results import measure
from rgtg.evaluation.variants import variants
from rgtg.models.reward import RewardModel
from rgtg.report.card import dataset_card, model_card
from rgtg.report.evaluation import as_markdown, at_equal_kl, kl_grid
from rgtg.training_settings import TrainReward
from tests.evaluation.test_results import completion, row
from tests.tolerance import alike


def results(*points):
    """A family of PARGS with KL and reward, one member a point."""
    ways = variants([f"pargs beta={i + 1}" for i in range(len(points))], Generate())
    rows = [[row(completion(guided=-5.0 + kl, reward=reward))] * 2 for kl, reward in points]
    return [measure(way, given, {}, 1.0) for way, given in zip(ways, rows, strict=True)]


def test_families_are_compared_at_kls_that_they_reach():
    assert kl_grid(results((26.0, 1.0), (40.0, 2.0))) == [28.0, 30.0, 32.0, 35.0, 37.0]
    assert kl_grid(results((0.5, 1.0), (32.0, 2.0))) == [1.0, 2.0, 4.0, 8.0, 16.0]
    names, (line,) = at_equal_kl(results((0.5, 1.0), (32.0, 2.0)))
    assert names[2:] == ["KL 1", "KL 2", "KL 4", "KL 8", "KL 16"]
    assert line[:2] == ["pargs", "score"]
    assert line[-1].startswith("+1.492")


def test_a_single_way_has_nothing_to_compare_with():
    alone = results((2.0, 1.0))
    assert kl_grid(alone) == []
    assert "equal distance" not in as_markdown(alone, {}, [])


@pytest.mark.parametrize("prompt", ["one two", [{"role": "user", "content": "one two"}]])
def test_the_card_of_a_reward_model_scores_as_decoding_does(make_reward, prompt):
    """By its own words alone: the code in it runs in plain transformers."""
    path = make_reward()
    accuracy = {"by_fraction": {"1.0": 0.8}, "by_score": {"final": 0.8}, "score": "final", "pairs": {"full": 100}}
    card = model_card(Config(train_reward=TrainReward(learning_rate=3e-4)), {"accuracy": accuracy}, {"train": 400})
    assert "Of 100 held-out pairs" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict = {}
    exec(code.replace("DIRECTORY", path), names)
    model = RewardModel.load(path).eval()
    ids = encode_prompt(model.tokenizer, prompt)
    ids += encode_response(model.tokenizer, prompt, " three")
    with torch.inference_mode():
        expected = model(torch.tensor([ids]))[0, -1].item()
    assert names["reward"](prompt, " three") == alike(expected)


def test_a_card_names_no_place():
    """It is published with the data."""
    settings = {
        "run": {"root": "s3://secret-bucket/team/runs"},
        "models": {"language": "/home/someone/models/small", "reward": "org/reward@abc"},
        "train_reward": {"pairs": ["~/pairs.parquet", "../shared/more"]},
        "evaluate": {"judges": ["https://judge.internal/v1"]},
    }
    card = dataset_card(Config.model_validate(settings), Preferences(), {"train": 1, "test": 0})
    for place in ("secret-bucket", "team", "someone", "~", "..", "internal"):
        assert place not in card
    for name in (
        "root: runs",
        "language: small",
        "reward: org/reward@abc",
        "- pairs.parquet",
        "- more",
        "- an endpoint",
    ):
        assert name in card
