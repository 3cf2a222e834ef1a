"""A run is found again, resumed by the same job alone, and never by halves."""

import json
import os
import stat
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from pipelines import run_directory
from pipelines.run_directory import RunDirectory, night, versions_that_round
from rgtg import storage
from rgtg.errors import UserError


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

        monkeypatch.setattr(run_directory, "date", Today)
        monkeypatch.setattr(run_directory, "datetime", Now)


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
    assert night(str(tmp_path)) == "2026-11-20"
    begin(tmp_path, "2026-11-20", clock.now)
    clock.now += timedelta(minutes=20)
    assert night(str(tmp_path)) == "2026-11-20"
    assert "2026-11-20, which is not complete; it began 0.3 hours ago" in capsys.readouterr().out
    (tmp_path / "2026-11-20" / "_SUCCESS").touch()
    assert night(str(tmp_path)) == "2026-11-21"


def test_the_next_night_is_a_new_run_whatever_became_of_the_last(tmp_path, clock):
    begin(tmp_path, "2026-11-20", clock.now)  # it failed, and nobody started it again
    clock.now += timedelta(days=1)
    assert night(str(tmp_path)) == "2026-11-21"


def test_a_run_of_today_goes_before_one_of_yesterday(tmp_path, clock):
    begin(tmp_path, "2026-11-20", clock.now)
    clock.now += timedelta(minutes=20)
    begin(tmp_path, "2026-11-21", clock.now)
    assert night(str(tmp_path)) == "2026-11-21"


def test_a_clock_that_was_set_back_harms_nothing(tmp_path, clock):
    begin(tmp_path, "2026-11-20", clock.now)
    clock.now -= timedelta(days=3)
    assert night(str(tmp_path)) == "2026-11-17"


VERSIONS = {"version of torch": "2.11.0"}


def test_other_versions_do_not_go_on_with_rows_of_an_attempt(configure):
    RunDirectory(configure()).begin("generate", {"a": 1}, unfinished=VERSIONS)
    again = RunDirectory(configure())
    with pytest.raises(UserError, match=r"version of torch \"2.11.0\" \(now \"2.13.0\"\)"):
        again.begin("generate", {"a": 1}, unfinished={"version of torch": "2.13.0"}, has_work=True)
    assert again.begin("generate", {"a": 1}, unfinished=VERSIONS, has_work=True) == "resume"


def test_other_versions_may_begin_where_no_row_is(configure):
    RunDirectory(configure()).begin("generate", {"a": 1}, unfinished=VERSIONS)
    newer = {"version of torch": "2.13.0"}
    assert RunDirectory(configure()).begin("generate", {"a": 1}, unfinished=newer) == "resume"
    with pytest.raises(UserError, match="version of torch"):  # whose rows these are then
        RunDirectory(configure()).begin("generate", {"a": 1}, unfinished=VERSIONS, has_work=True)


def test_a_stage_that_is_done_asks_for_no_version(configure):
    directory = RunDirectory(configure())
    directory.begin("generate", {"a": 1}, unfinished=VERSIONS)
    directory.finish("generate", {}, 0.0)
    newer = {"version of torch": "2.13.0"}
    assert RunDirectory(configure()).begin("generate", {"a": 1}, unfinished=newer, has_work=True) == "done"


def test_every_attempt_is_noted_with_its_versions(configure, monkeypatch):
    RunDirectory(configure()).begin("generate", {"a": 1}, unfinished=versions_that_round())
    monkeypatch.setattr(run_directory, "version", lambda name: "9.9")
    RunDirectory(configure()).begin("generate", {"a": 1}, unfinished=versions_that_round())
    attempts = json.loads(Path(configure().run.directory, "manifest.json").read_text())["attempts"]
    assert len(attempts) == 2
    assert attempts[0]["versions"]["torch"] != attempts[1]["versions"]["torch"] == "9.9"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"stages": {}}', '{"created": 5, "stages": {}}', "[" * 100_000])
def test_a_broken_manifest_is_one_sentence(configure, content):
    place = Path(configure().run.directory)
    place.mkdir(parents=True)
    (place / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest.json' is no manifest of a run"):
        RunDirectory(configure())


def test_what_is_written_is_as_private_as_the_user_wants(tmp_path):
    before = os.umask(0o077)
    try:
        storage.write_bytes(str(tmp_path / "run" / "config.yaml"), b"x")
        (tmp_path / "model" / "below").mkdir(parents=True, mode=0o755)
        (tmp_path / "model" / "below" / "weights").write_bytes(b"x")
        (tmp_path / "model" / "below" / "weights").chmod(0o644)
        storage.upload(tmp_path / "model", str(tmp_path / "run" / "reward_model"))
    finally:
        os.umask(before)
    written = [tmp_path / "run", *(tmp_path / "run").rglob("*")]
    assert len(written) == 5
    assert not any(stat.S_IMODE(path.stat().st_mode) & 0o077 for path in written)
