"""Who asks for bfloat16 on a CPU without units for it is told, once for each setting."""

import pytest
import torch

from pipelines import doctor
from pipelines.runtime import launch
from rgtg.config import Config
from rgtg.config_file import load
from rgtg.models import loading


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "_capabilities", lambda: {"avx2": True})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def make(*overrides: str) -> Config:
        return load(None, [f"run.root={tmp_path}", *overrides])

    return make


@pytest.mark.parametrize("setting", ["models.dtype", "train_reward.precision"])
def test_a_job_says_it_once(config, capfd, setting):
    done = []
    launch.run_alone(done.append, config(f"{setting}=bfloat16"), new_run=False)
    assert done
    assert capfd.readouterr().err.count(f"warning: {setting}=bfloat16: this CPU") == 1
    launch.run_alone(done.append, config(f"{setting}=auto"), new_run=False)
    assert "bfloat16" not in capfd.readouterr().err


def test_the_doctor_says_it(config, capfd):
    doctor.run(config("models.dtype=bfloat16"))
    assert "no bfloat16 units" in " ".join(capfd.readouterr().out.replace("│", "").split())
