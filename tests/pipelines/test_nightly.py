"""All stages on a real Ray, on disk and on an S3 server of the test's own."""

import json
import subprocess
import sys
from pathlib import Path

import boto3
import datasets
import pytest
import yaml
from moto.server import ThreadedMotoServer

from pipelines import evaluate, nightly
from rgtg import storage
from rgtg.errors import UserError

pytestmark = pytest.mark.ray


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
    for words in (
        "accuracy (partial)",
        "accuracy (full)",
        "reward (pargs)",
        "reward (unguided)",
        "1 prompts with an error",
    ):
        assert words in said
    place = Path(directory.place)
    assert {"config.yaml", "manifest.json", "_SUCCESS", "reward_model", "prompts", "completions", "preferences"} <= {
        file.name for file in place.iterdir()
    }
    manifest = json.loads((place / "manifest.json").read_text())
    assert all(stage["status"] == "done" for stage in manifest["stages"].values())
    assert manifest["stages"]["prompts"]["counts"]["rows"] == manifest["stages"]["generate"]["counts"]["rows"] == 11
    summary = json.loads((place / "report" / "summary.json").read_text())
    assert summary["guided"]["completions"] == 20
    assert list(summary["scores"]) == ["reward"]  # the true reward is the sandbox's alone
    score, baseline, gain = summary["scores"]["reward"]
    assert (score[2], baseline[2], gain[2]) == (10, 4, 4)  # paired on the prompts that both have

    written = {
        file: file.stat().st_mtime_ns
        for stage in ("reward_model", "completions", "preferences")
        for file in (place / stage).iterdir()
    }
    nightly.run(job())
    assert all(file.stat().st_mtime_ns == time for file, time in written.items())
    assert "step " not in capsys.readouterr().out

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
        ({"generate.samples": 1}, "a preference pair needs two completions that differ"),
        ({"generate.method": "args"}, "a preference pair needs two completions that differ"),
        ({"train_reward.init": other}, "another tokenizer than models.language"),
        ({"train_reward.objective": "farma"}, "scores candidates, and the reward model has a next-token head"),
        ({"generate.method": "farma"}, "has a scalar head"),
    ):
        with pytest.raises(UserError, match=sentence):
            nightly.run(job(**changes))
    assert not (tmp_path / "runs/test/pairs").exists()


@pytest.fixture
def s3(monkeypatch):
    """An S3 server of this test's own, with a bucket, at the address that the environment gives."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-the-test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
    yield "s3://bucket"
    server.stop()


def test_everything_on_s3(job, s3, tmp_path, language_dir):
    config = job(
        **{"run.root": f"{s3}/runs", "models.language": f"{s3}/language", "nightly.compare_objectives": False}
    )
    storage.upload(language_dir, config.models.language)
    for name in ("pairs", "prompts"):
        storage.write_bytes(f"{s3}/in/{name}.parquet", (tmp_path / f"{name}.parquet").read_bytes())
    file = f"{s3}/config.yaml"
    settings = config.model_dump(exclude_unset=True)
    settings["train_reward"]["pairs"], settings["generate"]["prompts"] = (
        f"{s3}/in/pairs.parquet",
        f"{s3}/in/prompts.parquet",
    )
    storage.write_bytes(file, yaml.safe_dump(settings).encode())

    command = [sys.executable, "-m", "pipelines.nightly", "--config", file]  # with a Ray that has this environment
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=250)
    assert result.returncode == 0, result.stderr

    run = config.run.directory
    assert storage.exists(f"{run}/_SUCCESS")
    manifest = storage.read_bytes(f"{run}/manifest.json").decode()
    assert json.loads(manifest)["stages"]["generate"]["counts"]["rows"] == 11
    assert "a-secret-of-the-test" not in manifest + storage.read_bytes(f"{run}/config.yaml").decode() + result.stdout
    pairs = datasets.load_dataset(storage.local_copy(f"{run}/preferences"))
    assert sum(len(split) for split in pairs.values()) == 10
    assert not (tmp_path / "runs").exists()
