"""Ctrl-C at every stage's entry, first row and last write: the same sentence, 130, and the same command goes on."""

import subprocess
import sys

import pytest

from pipelines.runtime.run_directory import manifest_of
from tests.pipelines.test_train_reward import make_pairs

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STAGES = ("prompts", "pairs", "train_reward", "generate", "preferences")

# The job, which sends itself the signal: when a stage has begun, when its first rows are there, or before the manifest
# says that it is done.
JOB = """
import os, signal, sys
from pipelines import nightly
from pipelines.runtime import launch, progress
from pipelines.runtime.run_directory import RunDirectory

stage, moment = sys.argv.pop(1), sys.argv.pop(1)
begin, finish, line, progress.EVERY_S = RunDirectory.begin, RunDirectory.finish, progress.Progress._line, 0.05

def interrupt():
    print("the signal", flush=True)
    os.kill(os.getpid(), signal.SIGINT)

def begun(self, name, *args, **kwargs):
    state = begin(self, name, *args, **kwargs)
    if (name, "entry") == (stage, moment):
        interrupt()
    return state

def finished(self, name, *args):
    if (name, "last write") == (stage, moment):
        interrupt()
    finish(self, name, *args)

def lined(self):
    if moment == "first row" and self.totals.get("rows"):
        interrupt()
    return line(self)

RunDirectory.begin, RunDirectory.finish, progress.Progress._line = begun, finished, lined
launch.main(nightly.run)
"""


def test_ctrl_c_at_every_moment_of_a_night(tmp_path, language_dir, write_parquet):
    settings = {
        **{"run.root": tmp_path, "run.id": "night", "models.language": language_dir, "models.device": "cpu"},
        **{"train_reward.pairs": write_parquet("pairs.parquet", **make_pairs(320)), "train_reward.threads": 1},
        "train_reward.eval_pairs": write_parquet("eval.parquet", **make_pairs(80, seed=1)),
        "generate.prompts": write_parquet("prompts.parquet", prompt=[f"p{i}:" for i in range(24)]),
        **{"generate.samples": 2, "generate.max_new_tokens": 8, "generate.slots": 8, "generate.block_rows": 2},
        "preferences.truncated": "keep",
    }

    def start(stage: str, moment: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", JOB, stage, moment, *(f"{key}={value}" for key, value in settings.items())]
        return subprocess.run(command, capture_output=True, text=True, timeout=600)

    for stage in STAGES:
        for moment in ("entry", *(["first row"] if stage == "generate" else []), "last write"):
            job = start(stage, moment)
            said = f"{stage}, {moment}: {job.stdout}{job.stderr}"
            assert "the signal" in job.stdout, said
            assert job.returncode == 130, said
            assert job.stderr.endswith("interrupted; rerun the same command to resume\n"), said
            assert "Traceback" not in job.stderr, said
            assert manifest_of(f"{tmp_path}/night")["stages"][stage]["status"] == "begun", said
    job = start("none", "none")
    assert job.returncode == 0, job.stderr
    assert (tmp_path / "night" / "_SUCCESS").exists()
