"""The judges of a comparison, without Ray."""

import shutil
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines import evaluate
from pipelines.runtime.fingerprints import InputDigests
from pipelines.runtime.job_context import JobContext
from rgtg import config_file
from rgtg.errors import UserError


def job_of(*settings: str) -> JobContext:
    return JobContext(config_file.load(None, list(settings)), SimpleNamespace(date=date(2026, 11, 21)), InputDigests())


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(evaluate, "_on_a_worker", lambda score, config: score)


def replaced_by(place: Path, other: str) -> None:
    shutil.copy(Path(other, "model.safetensors"), place / "model.safetensors")


def test_a_judge_refuses_a_model_that_changed_since_the_driver_saw_it(make_reward, tmp_path):
    place = Path(shutil.copytree(make_reward(arch="bert", seed=5), tmp_path / "judge"))
    judge = evaluate._by_model(job_of("models.device=cpu"), str(place))
    assert len(judge(["a"], ["b"])) == 1
    replaced_by(place, make_reward(arch="bert", seed=6))
    with pytest.raises(UserError, match="judge' changed while the job ran"):
        judge(["a"], ["b"])


def test_so_does_who_says_how_likely_completions_are(make_language, tmp_path):
    place = Path(shutil.copytree(make_language(seed=5), tmp_path / "language"))
    logprobs = evaluate._by_language(job_of("models.device=cpu", f"models.language={place}"))
    assert len(logprobs(["a"], [[5, 6]])) == 1
    replaced_by(place, make_language(seed=6))
    with pytest.raises(UserError, match="language' changed while the job ran"):
        logprobs(["a"], [[5, 6]])
