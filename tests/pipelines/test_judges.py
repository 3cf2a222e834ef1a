"""The judges of a comparison, without Ray."""

import shutil
from datetime import date
from pathlib import Path

import pytest

from pipelines import evaluate
from rgtg import config_file
from rgtg.errors import UserError

DAY = date(2026, 11, 21)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(evaluate, "_on_a_worker", lambda score, config: score)


def replaced_by(place: Path, other: str) -> None:
    shutil.copy(Path(other, "model.safetensors"), place / "model.safetensors")


def test_a_judge_refuses_a_model_that_changed_since_the_driver_saw_it(make_reward, tmp_path):
    place = Path(shutil.copytree(make_reward(arch="bert", seed=5), tmp_path / "judge"))
    judge = evaluate._by_model(config_file.load(None, ["models.device=cpu"]), str(place), DAY)
    assert len(judge(["a"], ["b"])) == 1
    replaced_by(place, make_reward(arch="bert", seed=6))
    with pytest.raises(UserError, match="judge' changed while the job ran"):
        judge(["a"], ["b"])


def test_so_does_who_says_how_likely_completions_are(make_language, tmp_path):
    place = Path(shutil.copytree(make_language(seed=5), tmp_path / "language"))
    config = config_file.load(None, ["models.device=cpu", f"models.language={place}"])
    logprobs = evaluate._by_language(config, DAY)
    assert len(logprobs(["a"], [[5, 6]])) == 1
    replaced_by(place, make_language(seed=6))
    with pytest.raises(UserError, match="language' changed while the job ran"):
        logprobs(["a"], [[5, 6]])
