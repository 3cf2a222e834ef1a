"""Which run a command resumes after midnight."""

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from pipelines.runtime import default_run, launch
from pipelines.runtime.run_directory import RunDirectory
from rgtg.config import Config, Run


class Clock:
    """The date and time that the product sees."""

    def __init__(self, monkeypatch, now: datetime) -> None:
        self.now = now
        clock = self

        class Today(date):
            @classmethod
            def today(cls):
                return clock.now.date()

        class Now(datetime):
            @classmethod
            def now(cls, tz=None):
                return clock.now

        monkeypatch.setattr(default_run, "date", Today)
        monkeypatch.setattr(default_run, "datetime", Now)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch, datetime(2026, 11, 20, 23, 50, tzinfo=UTC))


def begin(root: Path, name: str, created: datetime, *, complete: bool = False) -> None:
    (root / name).mkdir(parents=True)
    manifest = {"run_id": name, "created": created.strftime("%Y-%m-%dT%H:%M:%SZ"), "versions": {}, "stages": {}}
    (root / name / "manifest.json").write_text(json.dumps(manifest))
    if complete:
        (root / name / "_SUCCESS").touch()


def test_a_night_is_found_again_after_midnight(tmp_path, clock, capsys):
    assert default_run.default_run_id(str(tmp_path), Config()) == "2026-11-20"
    begin(tmp_path, "2026-11-20", clock.now)
    clock.now += timedelta(minutes=20)
    assert default_run.default_run_id(str(tmp_path), Config()) == "2026-11-20"
    assert "2026-11-20, which is incomplete and began 0.3 hours ago" in capsys.readouterr().out
    (tmp_path / "2026-11-20" / "_SUCCESS").touch()
    assert default_run.default_run_id(str(tmp_path), Config()) == "2026-11-21"


def test_the_next_night_is_a_new_run_whatever_became_of_the_last(tmp_path, clock):
    begin(tmp_path, "2026-11-20", clock.now)  # it failed, and nobody started it again
    clock.now += timedelta(days=1)
    assert default_run.default_run_id(str(tmp_path), Config()) == "2026-11-21"


def test_a_run_of_today_goes_before_one_of_yesterday(tmp_path, clock):
    begin(tmp_path, "2026-11-20", clock.now)
    clock.now += timedelta(minutes=20)
    begin(tmp_path, "2026-11-21", clock.now)
    assert default_run.default_run_id(str(tmp_path), Config()) == "2026-11-21"


def test_a_clock_that_was_set_back_harms_nothing(tmp_path, clock):
    begin(tmp_path, "2026-11-20", clock.now)
    clock.now -= timedelta(days=3)
    assert default_run.default_run_id(str(tmp_path), Config()) == "2026-11-17"


@pytest.mark.parametrize("content", ["", "{", '{"run_id": "x"}'])
def test_a_torn_manifest_of_yesterday_does_not_stop_tonight(tmp_path, clock, capsys, content):
    begin(tmp_path, "2026-11-19", clock.now)
    (tmp_path / "2026-11-19" / "manifest.json").write_text(content)
    assert default_run.default_run_id(str(tmp_path), Config()) == "2026-11-20"
    assert "run: starting 2026-11-20, because '" in capsys.readouterr().out


@pytest.fixture
def yesterday(configure, clock, write_parquet, tmp_path, monkeypatch):
    """A run that began ten minutes before midnight, and what `default_run_id` says after it, with other settings."""
    prompts = write_parquet("prompts.parquet", prompt=["one"])
    place = {"run.id": "2026-11-20", "generate.prompts": prompts}
    directory = RunDirectory(configure(**place))
    directory.manifest["created"] = clock.now.strftime("%Y-%m-%dT%H:%M:%SZ")
    directory.begin(
        "generate", {"prompts": "x", "generate.method": "pargs", "models.language": "x", "generate.prompts": []}
    )
    clock.now += timedelta(minutes=20)
    monkeypatch.chdir(tmp_path)

    def chosen(**changes) -> str:
        return default_run.default_run_id(configure().run.root, configure(**(place | changes)))

    return chosen


def test_a_run_of_yesterday_goes_on_with_its_own_settings_alone(yesterday, make_language, write_parquet, capsys):
    same = {
        "generate.slots": 8,
        "generate.max_actors": 2,
        "preferences.min_margin": 1.0,
        "generate.prompts": "prompts.parquet",
    }
    for name, value in same.items():
        assert yesterday(**{name: value}) == "2026-11-20", name
    other = {
        "generate.method": "args",
        "models.language": make_language(seed=9),
        "generate.prompts": write_parquet("other.parquet", prompt=["two"]),
    }
    capsys.readouterr()
    for name, value in other.items():
        assert yesterday(**{name: value}) == "2026-11-21", name
        assert capsys.readouterr().out.endswith(f"2026-11-20 has another {name}\n")


def test_what_the_sandbox_stands_for_is_no_change(configure, clock):
    place = {"run.id": "2026-11-20", "models.language": "sandbox"}
    resolved = {"models.language": "/cache/language", "train_reward.pairs": "/cache/pairs", "generate.prompts": "/p"}
    sandbox = configure(**place)
    directory = RunDirectory(configure(**place | resolved | {"train_reward.eval_pairs": "/cache/eval"}))
    directory.manifest["created"] = clock.now.strftime("%Y-%m-%dT%H:%M:%SZ")
    directory.begin("pairs", dict.fromkeys([*resolved, "train_reward.eval_pairs", "run.seed"]))
    clock.now += timedelta(minutes=20)
    assert default_run.default_run_id(sandbox.run.root, sandbox) == "2026-11-20"
    assert default_run.default_run_id(sandbox.run.root, configure(**place, **{"run.seed": 1})) == "2026-11-21"


def test_settings_that_cannot_be_read_are_not_known(yesterday, configure):
    file = Path(configure().run.root, "2026-11-20", "config.yaml")
    for content in ("{", "[]", "generate: 5", "\0"):
        file.write_text(content)
        assert yesterday(**{"generate.method": "args"}) == "2026-11-20"
    file.unlink()
    assert yesterday(**{"generate.method": "args"}) == "2026-11-20"


def test_a_new_run_is_tonights(yesterday, configure, tmp_path):
    config = configure(**{"generate.prompts": str(tmp_path / "prompts.parquet")})
    config = config.model_copy(update={"run": Run(root=config.run.root)})  # without an id
    jobs: list[Config] = []
    for new_run in (False, True):
        launch.run_alone(jobs.append, config, new_run)
    assert [job.run.id for job in jobs] == ["2026-11-20", config.run.id]
