"""All stages on a real Ray, on disk and on an S3 server of the test's own."""

import json
from pathlib import Path

import boto3
import datasets
import pytest
from moto.server import ThreadedMotoServer

from pipelines import nightly
from rgtg import storage

pytestmark = pytest.mark.ray


@pytest.fixture
def job(configure, write_parquet, ray_here):
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


def test_a_night_ends_with_everything_and_the_next_start_does_nothing(job, capsys):
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
    assert summary["unguided"]["completions"] == 8

    written = {
        file: file.stat().st_mtime_ns
        for stage in ("reward_model", "completions", "preferences")
        for file in (place / stage).iterdir()
    }
    nightly.run(job())
    assert all(file.stat().st_mtime_ns == time for file, time in written.items())
    assert "step " not in capsys.readouterr().out


def test_everything_on_s3(job, monkeypatch, tmp_path, language_dir):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
        local = job()
        storage.upload(language_dir, "s3://bucket/language")
        for name in ("pairs", "prompts"):
            storage.write_bytes(f"s3://bucket/in/{name}.parquet", (tmp_path / f"{name}.parquet").read_bytes())
        config = job(
            **{
                "run.root": "s3://bucket/runs",
                "models.language": "s3://bucket/language",
                "train_reward.pairs": "s3://bucket/in/pairs.parquet",
                "generate.prompts": "s3://bucket/in/prompts.parquet",
                "nightly.compare_objectives": False,
            }
        )
        directory = nightly.run(config)
        assert directory.place == "s3://bucket/runs/test"
        assert storage.exists(directory.path("_SUCCESS"))
        assert directory.counts("generate")["rows"] == 11
        storage_copy = storage.local_copy(directory.path("preferences"))
        pairs = datasets.load_dataset(storage_copy)
        assert sum(len(split) for split in pairs.values()) == 10
        assert not Path(local.run.root).exists()
    finally:
        server.stop()
