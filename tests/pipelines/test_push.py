"""Runs on a hub that stands in for the real one: what is there, what is not, and pushes that are cut short."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import yaml
from huggingface_hub import constants
from transformers import AutoModelForSequenceClassification

from pipelines import preferences, push, report
from pipelines.runtime.run_directory import RunDirectory
from rgtg import storage
from rgtg.config import Config
from rgtg.errors import TransientError, UserError
from rgtg.report.card import model_card
from tests.fake_hub import TOKEN, FakeHub

REPO, SET, MODEL = "org/nights", "datasets/org/nights", "models/org/nights"
ALICE = "alice-secret"  # in every path of the run's machine


@pytest.fixture
def hub(monkeypatch):
    hub = FakeHub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield hub
    hub.close()


@pytest.fixture
def night(finished, tmp_path) -> Config:
    """A complete run, in the directory of somebody, with exports and a page."""
    rows = [(f"prompt {i}", [("a good one", 2.0), (f"a worse one {i}", 1.0)]) for i in range(40)]
    config = finished(
        rows,
        **{
            "run.root": str(tmp_path / ALICE / "runs"),
            "generate.prompts": f"s3://{ALICE}/prompts.jsonl",
            "preferences.export": "[unpaired,ranked,chat-pairs]",
            "preferences.test_fraction": 0.2,
            "gates.on_fail": "warn",
        },
    )
    directory = preferences.run(config)
    counts = {
        "files": 1,
        "skipped_files": {f"/home/{ALICE}/x.parquet": f"cannot read '/home/{ALICE}/x.parquet': Permission denied"},
        "error_reasons": {f"the column {ALICE!r} is missing": 3},
    }
    found = [{"path": f"/home/{ALICE}/prompts.jsonl", "size": 7, "sha256": "0" * 64}]
    directory.begin("prompts", {"generate.prompts": found, "at": f"s3://{ALICE}"})
    directory.finish("prompts", counts, 1.0)
    report.write(directory)
    page = Path(directory.path("report", "index.html"))
    page.write_text(f"{page.read_text()}<!-- {directory.uri} -->")  # as another version may have written it
    directory.succeed()
    return config


def files_of(hub: FakeHub, name: str = SET) -> dict[str, bytes]:
    return hub.repositories[name].at("main")


def test_a_night_is_a_data_set(hub, night, tmp_path, capsys):
    push.run(night, REPO)
    repository = hub.repositories[SET]
    assert repository.private
    assert repository.tags == {"test": 1}
    assert f"pushed: {REPO} on the hub, at the tag test (private)" in capsys.readouterr().out
    folder = hub.download(SET, "test", tmp_path / "copy")
    here = Path(night.run.directory)
    for split in ("train", "test"):
        first = (here / f"preferences/{split}-00000.parquet").read_bytes()
        assert (folder / f"data/{split}-00000-of-00001.parquet").read_bytes() == first
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    names = [config["config_name"] for config in front["configs"]]
    assert names == ["default", "unpaired", "chat-pairs", "ranked"]
    assert 'load_dataset("org/nights", revision="test")' in card
    assert "dpo" in front["tags"]
    for name in names:
        loaded = datasets.load_dataset(str(folder), name, cache_dir=str(tmp_path / "cache"))
        expected = here / ("preferences" if name == "default" else f"exports/{name}")
        alone = datasets.load_dataset(str(expected), cache_dir=str(tmp_path / "cache"))
        assert {split: rows.num_rows for split, rows in loaded.items()} == {s: r.num_rows for s, r in alone.items()}
        assert loaded["train"][0] == alone["train"][0]
    assert Config.model_validate(yaml.safe_load((folder / "config.yaml").read_text())).run.id == "test"
    assert (folder / "report/index.html").exists()


def test_nothing_says_where_the_run_was_made(hub, night, tmp_path):
    push.run(night, REPO)
    for path, content in files_of(hub).items():
        for word in (ALICE, str(tmp_path), "/home"):
            assert word.encode() not in content, path
    manifest = json.loads(files_of(hub)["manifest.json"])
    stage = manifest["stages"]["prompts"]
    assert stage["inputs"]["generate.prompts"] == [{"path": "prompts.jsonl", "size": 7, "sha256": "0" * 64}]
    assert stage["counts"]["skipped_files"] == {"cannot read '...': Permission denied": 1}
    assert stage["counts"]["error_reasons"] == {"the column '...' is missing": 3}
    assert manifest["stages"]["preferences"]["counts"]["train"] > 0


def test_the_same_night_twice_is_one(hub, night, capsys):
    push.run(night, REPO)
    push.run(night, REPO)
    assert f"nothing to do: the run is {REPO} on the hub, at the tag test (private) already" in capsys.readouterr().out
    assert len(hub.repositories[SET].commits) == 2
    report.write(RunDirectory(night))  # another page, of the same night
    push.run(night, REPO)
    here = Path(night.run.directory, "preferences")
    for change, path in (
        (lambda: shutil.copy(here / "test-00000.parquet", here / "train-00000.parquet"), "data/train-00000-of-00001"),
        (lambda: os.remove(here / "train-00000.parquet"), "data/train-00000-of-00001"),
    ):
        change()
        with pytest.raises(UserError, match=f"has a tag 'test' with another {path}.parquet; delete the tag there"):
            push.run(night, REPO)
    assert len(hub.repositories[SET].commits) == 2


def test_a_night_replaces_the_one_before_it(hub, night):
    push.run(night, REPO)
    hub.repositories[SET].commits[-1] |= {"LICENSE": b"mine", "data/train-00001-of-00002.parquet": b"old"}
    later = Path(night.run.root, "later")
    shutil.copytree(night.run.directory, later)
    shutil.rmtree(later / "exports")
    push.run(night.model_copy(update={"run": night.run.model_copy(update={"id": "later"})}), REPO)
    there = files_of(hub)
    assert there["LICENSE"] == b"mine"
    assert sorted(path for path in there if path.endswith((".parquet", ".jsonl"))) == [
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
    ]
    assert set(hub.repositories[SET].tags) == {"test", "later"}


def test_a_push_that_is_refused_anywhere_leaves_main_and_the_next_one_completes_it(hub, night):
    """Of every request, one push fails at it."""
    shutil.rmtree(Path(night.run.directory, "exports"))
    push.run(night, REPO)
    whole, total = files_of(hub), len(hub.requests)
    assert total > 10
    for number in range(1, total + 1):
        hub.repositories.clear()
        hub.objects.clear()
        hub.requests.clear()
        hub.plan = lambda n, *_, at=number: (403, f"no {TOKEN} here") if n == at else None
        with pytest.raises(UserError, match=r"does not let this token write to 'org/nights' \(no \*\*\* here\)"):
            push.run(night, REPO)
        committed = any(path.endswith("/commit/main") for _, path in hub.requests[:-1])
        if SET in hub.repositories:
            assert len(hub.repositories[SET].commits) == 1 + committed
            assert not hub.repositories[SET].tags
        hub.plan = lambda *_: None
        kept = len(hub.objects)
        hub.requests.clear()
        push.run(night, REPO)
        assert files_of(hub) == whole
        assert hub.repositories[SET].tags == {"test": 1}
        assert sum(method == "PUT" for method, _ in hub.requests) == len(hub.objects) - kept


def command(hub: FakeHub, *arguments: str) -> subprocess.Popen:
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "push", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
    )


@pytest.mark.parametrize("at", ["PUT", "commit", "tag"])
def test_a_push_that_is_killed_is_completed_by_the_next_one(hub, night, at):
    named = [f"run.root={night.run.root}", "run.id=test", "--repo", REPO]
    process = command(hub, *named)

    def kill(number: int, method: str, path: str) -> tuple[int, str] | None:
        if at not in (method, *path.split("/")):
            return None
        process.send_signal(signal.SIGKILL)
        process.wait()
        return 500, "nobody listens"

    hub.plan = kill
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(hub.repositories[SET].commits) == (2 if at == "tag" else 1)
    hub.plan = lambda *_: None
    again = command(hub, *named)
    said, _ = again.communicate()
    assert again.returncode == 0, said
    assert "pushed: org/nights" in said
    assert TOKEN not in said
    assert hub.repositories[SET].tags == {"test": 1}


def test_a_mistake_is_one_sentence(hub, night):
    for repo, sentence in (("a b/c", "--repo: "), ("nights", "--repo: write ORG/NAME")):
        with pytest.raises(UserError, match=sentence):
            push.run(night, repo)
    hub.plan = lambda *_: (401, f"bad token {TOKEN}")
    process = command(hub, f"run.root={night.run.root}", "run.id=test", "--repo", REPO)
    said, _ = process.communicate()
    assert process.returncode == 2
    assert said.startswith("error: the hub does not let this token write")
    assert len(said.splitlines()) == 1
    assert TOKEN not in said


def test_what_time_may_mend_is_no_mistake(hub, night):
    hub.plan = lambda n, method, path: (412, "another commit") if path.endswith("/commit/main") else None
    with pytest.raises(TransientError, match="cut short: another commit; the same command goes on from there"):
        push.run(night, REPO)
    hub.close()
    with pytest.raises(TransientError, match="was cut short: "):
        push.run(night, REPO)


def test_a_run_that_is_not_complete_is_refused(hub, night):
    os.remove(storage.join(night.run.directory, "_SUCCESS"))
    with pytest.raises(UserError, match="there is no complete run at .* or finish it by rgtg nightly"):
        push.run(night, REPO)
    assert not hub.requests


def test_a_run_that_changes_meanwhile_is_not_published(hub, night):
    def rerun(number: int, method: str, path: str) -> None:
        if method == "PUT":
            RunDirectory(night).begin("gates", {"gates.length": 0.1}, rerunnable=True)

    hub.plan = rerun
    with pytest.raises(UserError, match="there is no complete run"):
        push.run(night, REPO)
    assert len(hub.repositories[SET].commits) == 1


def test_who_pushes_is_asked_for(hub, night, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="set HF_TOKEN to a token that may write"):
        push.run(night, REPO)


def test_offline_is_no_failure_of_the_hub(hub, night, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set; unset it to push"):
        push.run(night, REPO)


def test_public_is_said_by_name(hub, night):
    push.run(night, REPO, public=True)
    assert not hub.repositories[SET].private
    with pytest.raises(UserError, match="the repository 'org/nights' is public; push with --public"):
        push.run(night, REPO)


def test_a_tag_that_git_or_the_repository_has_no_room_for(hub, night):
    for run_id, sentence in (("a..b", "git allows no tag"), ("main", "has a branch 'main'")):
        shutil.copytree(night.run.directory, Path(night.run.root, run_id))
        with pytest.raises(UserError, match=sentence):
            push.run(night.model_copy(update={"run": night.run.model_copy(update={"id": run_id})}), REPO)


def test_a_reward_model_is_a_repository_of_its_own(hub, night, reward_dir, tmp_path, capsys):
    with pytest.raises(UserError, match="has trained no reward model"):
        push.run(night, REPO, reward_model=True)
    directory = RunDirectory(night)
    accuracy = {"by_score": {"final": 0.8}, "by_fraction": {"1.0": 0.8}, "score": "final", "pairs": {"full": 100}}
    directory.begin("train_reward", {"train_reward.init": "x"})
    directory.finish("train_reward", {"accuracy": accuracy}, 1.0)
    directory.succeed()
    shutil.copytree(reward_dir, directory.path("reward_model"))
    settings = Config.model_validate({"train_reward": {"init": f"org/base@{'a' * 40}", "learning_rate": 1e-3}})
    card = model_card(settings, {"accuracy": accuracy}, {"train": 400})
    storage.write_bytes(directory.path("reward_model", "README.md"), card.encode())
    config = json.loads(Path(reward_dir, "config.json").read_text()) | {"_name_or_path": directory.uri}
    storage.write_json(directory.path("reward_model", "config.json"), config)
    push.run(night, REPO, reward_model=True)
    assert hub.repositories[MODEL].tags == {"test": 1}
    assert SET not in hub.repositories
    there = files_of(hub, MODEL)
    front = yaml.safe_load(there["README.md"].decode().split("---\n")[1])
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "text-classification"
    assert front["base_model"] == "org/base"
    assert 'from_pretrained("org/nights", revision="test")' in there["README.md"].decode()
    assert not any(ALICE.encode() in content for content in there.values())
    assert AutoModelForSequenceClassification.from_pretrained(hub.download(MODEL, "test", tmp_path / "model"))
    push.run(night, REPO, reward_model=True)
    assert "nothing to do" in capsys.readouterr().out


def test_a_run_on_s3(hub, night, make_bucket, monkeypatch):
    push.run(night, REPO)
    here = files_of(hub)
    bucket = make_bucket(monkeypatch)
    storage.upload(night.run.directory, f"{bucket}/runs/test")
    night = night.model_copy(update={"run": night.run.model_copy(update={"root": f"{bucket}/runs"})})
    push.run(night, "org/other")
    there = files_of(hub, "datasets/org/other")
    assert there.keys() == here.keys()
    assert {path for path in here if there[path] != here[path]} == {"README.md", "report/index.html"}
    push.run(night, "org/other")
    assert len(hub.repositories["datasets/org/other"].commits) == 2
