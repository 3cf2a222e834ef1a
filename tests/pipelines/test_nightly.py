"""All stages on a real Ray, on disk and on an S3 server of the test's own."""

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import boto3
import datasets
import pyarrow as pa
import pytest
import yaml

from pipelines import evaluate, nightly
from rgtg import storage, table_files
from rgtg.errors import UserError
from rgtg.node_copy import local_copy
from tests.faulty_s3 import TRANSIENT, at_random, no_faults

pytestmark = pytest.mark.ray

RATE, SEED = 0.08, 35  # of the requests; all kinds of faults are among the first


@pytest.fixture
def job(configure, write_parquet):
    def make(**changes):
        rows = range(48)
        given = write_parquet(
            "pairs.parquet",
            prompt=[f"p{i}:" for i in rows],
            chosen=["xx" * (1 + i % 3) for i in rows],
            rejected=["yyy"] * 48,
        )
        asked = write_parquet("prompts.parquet", prompt=[*(f"p{i}:" for i in range(10)), None])
        settings = {
            "train_reward.pairs": given,
            "train_reward.eval_fraction": 0.3,
            "generate.prompts": asked,
            "nightly.baseline_prompts": 4,
            "nightly.compare_objectives": True,
        }
        return configure(**(settings | changes))

    return make


def test_a_night_ends_with_everything_and_the_next_start_does_nothing(job, ray_here, capsys):
    directory = nightly.run(job())
    said = capsys.readouterr().out
    assert "nothing to do" not in said
    for words in (
        "accuracy (partial)",
        "accuracy (full)",
        "score (pargs)",
        "score (unguided)",
        "1 prompts with an error",
    ):
        assert words in " ".join(said.replace("│", "").split())
    place = Path(directory.uri)
    assert {"config.yaml", "manifest.json", "_SUCCESS", "reward_model", "prompts", "completions", "preferences"} <= {
        file.name for file in place.iterdir()
    }
    manifest = json.loads((place / "manifest.json").read_text())
    assert all(stage["status"] == "done" for stage in manifest["stages"].values())
    assert manifest["stages"]["prompts"]["counts"]["rows"] == manifest["stages"]["generate"]["counts"]["rows"] == 11
    summary = json.loads((place / "report" / "summary.json").read_text())
    assert summary["guided"]["completions"] == 20
    assert list(summary["scores"]) == ["score"]  # the true reward is the sandbox's alone
    score, baseline, gain = summary["scores"]["score"]
    assert (score[2], baseline[2], gain[2]) == (10, 4, 4)  # paired on the prompts that both have
    figures = json.loads((place / "report" / "report.json").read_text())
    assert figures["complete"]
    assert figures["sides"][0]["gain"] == [*map(pytest.approx, gain[:2]), 4]
    assert "<h1>Run " in (place / "report" / "index.html").read_text()

    written = {
        file: file.stat().st_mtime_ns
        for stage in ("reward_model", "completions", "preferences")
        for file in (place / stage).iterdir()
    }
    nightly.run(job())
    assert all(file.stat().st_mtime_ns == time for file, time in written.items())
    said = capsys.readouterr().out
    assert "step " not in said
    assert f"nothing to do: the run {directory.uri} is already complete; use --new-run" in said

    # A comparison beside it uses the reward models that are there, and leaves the run complete.
    (result,) = evaluate.run(job(**{"evaluate.methods": "args", "evaluate.num_prompts": 4}))
    assert result.completions == 8
    assert "step " not in capsys.readouterr().out
    assert (place / "_SUCCESS").exists()
    with pytest.raises(UserError, match=r"train_reward\.epochs 1 \(now 2\)"):
        evaluate.run(job(**{"evaluate.methods": "pargs", "train_reward.epochs": 2}))


def test_what_would_fail_after_the_training_is_said_before_it(job, make_language, make_tokenizer, tmp_path):
    other = make_language(make_tokenizer("abc"))
    for changes, sentence in (
        ({"generate.samples": 1}, "a preference pair needs two different completions"),
        ({"generate.method": "args"}, "a preference pair needs two different completions"),
        ({"train_reward.init": other}, "another tokenizer than models.language"),
        ({"train_reward.objective": "farma"}, "scores candidates, and the reward model has a next-token head"),
        ({"generate.method": "farma"}, "has a scalar head"),
    ):
        with pytest.raises(UserError, match=sentence):
            nightly.run(job(**changes))
    assert not (tmp_path / "runs/test/pairs").exists()


@pytest.fixture(scope="module")
def night(make_bucket, tmp_path_factory, language_dir):
    """A whole run with everything on S3, and how to start another one of the same inputs there."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        s3 = make_bucket(patch)
        storage.upload(language_dir, f"{s3}/language")
        pairs = [{"prompt": f"p{i}:", "chosen": "xx" * (1 + i % 3), "rejected": "yyy"} for i in range(48)]
        table_files.write_table(f"{s3}/in/pairs.parquet", pa.Table.from_pylist(pairs))
        asked = [*(f"p{i}:" for i in range(10)), None]
        table_files.write_table(f"{s3}/in/prompts.parquet", pa.table({"prompt": asked}))
        settings = {
            "run": {"root": f"{s3}/runs"},
            "models": {"language": f"{s3}/language", "device": "cpu"},
            "train_reward": {
                "pairs": f"{s3}/in/pairs.parquet",
                **{"eval_fraction": 0.3, "learning_rate": 3e-3, "batch_size": 8, "checkpoint_every": 2},
                **{"precision": "float32", "threads": 1},
            },
            "generate": {
                "prompts": f"{s3}/in/prompts.parquet",
                **{"samples": 2, "unguided_samples": 3, "max_new_tokens": 8, "slots": 6, "block_rows": 4},
            },
            "preferences": {"truncated": "keep"},
            "nightly": {"compare_objectives": False},
        }
        storage.write_bytes(f"{s3}/config.yaml", yaml.safe_dump(settings).encode())

    def start(run_id):
        # With a Ray of its own, which has this environment.
        command = [*(sys.executable, "-m", "pipelines.nightly"), "--config", f"{s3}/config.yaml", f"run.id={run_id}"]
        return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=1000)

    with pytest.MonkeyPatch.context() as patch:
        make_bucket(patch)
        return SimpleNamespace(s3=s3, folder=folder, start=start, quiet=start("quiet"))


def rows_of(run):
    return [row for table in table_files.read_tables(f"{run}/completions") for row in table.to_pylist()]


def by_prompt(rows):
    return {row["prompt"]: row["completions"] for row in rows}


def test_everything_on_s3(night, s3):
    assert night.quiet.returncode == 0, night.quiet.stderr
    run = f"{night.s3}/runs/quiet"
    assert storage.exists(f"{run}/_SUCCESS")
    manifest = storage.read_bytes(f"{run}/manifest.json").decode()
    assert json.loads(manifest)["stages"]["generate"]["counts"]["rows"] == 11
    said = night.quiet.stdout + night.quiet.stderr
    assert "a-secret-of-the-test" not in said
    client = boto3.client("s3")
    written = [key["Key"] for key in client.list_objects_v2(Bucket=night.s3.removeprefix("s3://"))["Contents"]]
    assert len(written) > 20
    for key in written:
        content = client.get_object(Bucket=night.s3.removeprefix("s3://"), Key=key)["Body"].read()
        assert b"a-secret-of-the-test" not in content, key
    splits = datasets.load_dataset(local_copy(f"{run}/preferences"))
    pairs = [pair for split in splits.values() for pair in split]
    assert 0 < len(pairs) <= 10
    # By default a guided completion is chosen, and one of the language model rejected.
    assert {(p["chosen_method"], p["rejected_method"], p["strategy"]) for p in pairs} == {
        ("pargs", "unguided", "guided-unguided")
    }
    assert all(p["score_chosen"] > p["score_rejected"] for p in pairs)
    assert all(len(row["completions"]) == 5 for row in rows_of(run) if row["error"] is None)
    summary = json.loads(storage.read_bytes(f"{run}/report/summary.json"))
    assert all(summary["scores"]["score"]), "the run's own unguided samples are what guidance is compared with"
    assert not storage.exists(f"{run}/completions_unguided")
    assert not list(night.folder.iterdir())


def until_a_block_is_committed(plan):
    """As `plan` has it; then the credentials expire."""
    expired = threading.Event()

    def expiring(number, method, path):
        if expired.is_set():
            return "expired"
        if method == "PUT" and re.search(r"/_checkpoint/[^/.]+\.parquet$", path.split("?")[0]):
            expired.set()
            return None
        return plan(number, method, path)

    return expiring


@pytest.mark.timeout(2400)  # two starts of all stages
@pytest.mark.slow
def test_a_night_on_a_store_that_fails_now_and_then_and_on_credentials_that_expire(night, faulty):
    """The rows are those of a night on a good store, each one once."""
    faulty.plan = until_a_block_is_committed(at_random(SEED, RATE))
    broken_off = night.start("faulty")
    assert broken_off.returncode == 2, broken_off.stdout + broken_off.stderr
    said = [line for line in broken_off.stderr.splitlines() if " logging.cc:" not in line]  # Ray's, on every start
    assert len(said) == 1, broken_off.stderr
    assert said[0].startswith("error: ")
    assert said[0].endswith("check that the credentials in the environment are right and have not expired")
    assert set(faulty.injected) == {*TRANSIENT, "expired"}

    faulty.plan = at_random(SEED + 1, RATE)
    completed = night.start("faulty")
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert set(faulty.injected) == set(TRANSIENT)
    faulty.plan = no_faults
    rows, quiet = (rows_of(f"{night.s3}/runs/{run_id}") for run_id in ("faulty", "quiet"))
    assert len({row["prompt_id"] for row in rows}) == len(rows) == 11
    assert by_prompt(rows) == by_prompt(quiet)
    assert storage.exists(f"{night.s3}/runs/faulty/_SUCCESS")
