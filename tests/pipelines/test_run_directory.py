"""A run is found again, resumed by the same job alone, and never by halves."""

import json
import os
import stat
from functools import cache
from pathlib import Path

import pytest

from pipelines import run_directory
from pipelines.run_directory import RunDirectory, versions_that_round
from rgtg import storage
from rgtg.errors import UserError

VERSIONS = {"version of torch": "2.11.0"}


def test_other_versions_do_not_go_on_with_rows_of_an_attempt(configure):
    RunDirectory(configure()).begin("generate", {"a": 1}, alike=VERSIONS)
    again = RunDirectory(configure())
    with pytest.raises(UserError, match=r"version of torch \"2.11.0\" \(now \"2.13.0\"\)"):
        again.begin("generate", {"a": 1}, alike={"version of torch": "2.13.0"}, has_work=True)
    assert again.begin("generate", {"a": 1}, alike=VERSIONS, has_work=True) == "resume"


def test_other_versions_may_begin_where_no_row_is(configure):
    RunDirectory(configure()).begin("generate", {"a": 1}, alike=VERSIONS)
    newer = {"version of torch": "2.13.0"}
    assert RunDirectory(configure()).begin("generate", {"a": 1}, alike=newer) == "resume"
    with pytest.raises(UserError, match="version of torch"):  # whose rows these are then
        RunDirectory(configure()).begin("generate", {"a": 1}, alike=VERSIONS, has_work=True)


def test_a_stage_that_is_done_asks_for_no_version(configure):
    directory = RunDirectory(configure())
    directory.begin("generate", {"a": 1}, alike=VERSIONS)
    directory.finish("generate", {}, 0.0)
    newer = {"version of torch": "2.13.0"}
    assert RunDirectory(configure()).begin("generate", {"a": 1}, alike=newer, has_work=True) == "done"


def test_other_versions_do_not_go_on_where_the_inputs_have_grown_either(configure, capsys):
    """An incremental run whose prompts grow while it is unfinished would have rows of two kinds."""
    directory, newer = RunDirectory(configure()), {"version of torch": "2.13.0"}
    directory.begin("generate", {"prompts": 1}, alike=VERSIONS)
    grown = {"rerunnable": True, "has_work": True}
    with pytest.raises(UserError, match="in the middle of its stage 'generate', with version of torch"):
        directory.begin("generate", {"prompts": 2}, alike=newer, **grown)
    assert directory.begin("generate", {"prompts": 2}, alike=VERSIONS, **grown) == "new"
    directory.finish("generate", {}, 0.0)
    assert "warning" not in capsys.readouterr().out
    assert directory.begin("generate", {"prompts": 3}, alike=newer, **grown) == "new"
    said = capsys.readouterr().out
    assert 'warning: generate has rows made with version of torch "2.11.0" (now "2.13.0")' in said


def test_every_attempt_is_noted_once_with_its_versions(configure, monkeypatch):
    monkeypatch.setattr(run_directory, "attempt", cache(run_directory.attempt.__wrapped__))
    for stage in ("prompts", "generate"):  # of one process
        RunDirectory(configure()).begin(stage, {"a": 1}, alike=versions_that_round())
    run_directory.attempt.cache_clear()
    monkeypatch.setattr(run_directory, "version", lambda name: "9.9")
    RunDirectory(configure()).begin("generate", {"a": 1}, alike=versions_that_round())
    attempts = json.loads(Path(configure().run.directory, "manifest.json").read_text())["attempts"]
    assert len(attempts) == 2
    assert attempts[0]["versions"]["torch"] != attempts[1]["versions"]["torch"] == "9.9"


def test_why_there_are_no_files_is_said(tmp_path):
    (tmp_path / "a.parquet").symlink_to(tmp_path / "nothing")
    with pytest.raises(
        UserError, match=r"there are no .* files at .* \('.*a.parquet': a link to a file that does not exist\)"
    ):
        run_directory.listing([str(tmp_path)])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"stages": {}}', '{"created": 5, "stages": {}}', "[" * 100_000])
def test_a_broken_manifest_is_one_sentence(configure, content):
    place = Path(configure().run.directory)
    place.mkdir(parents=True)
    (place / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest.json' is no manifest of a run"):
        RunDirectory(configure())


def test_a_manifest_of_a_newer_version_is_one_sentence_and_one_without_a_number_is_read(configure):
    directory = RunDirectory(configure())
    directory.begin("pairs", {"a": 1})
    file = Path(directory.path("manifest.json"))
    manifest = json.loads(file.read_text())
    assert manifest["format"] == 1
    file.write_text(json.dumps(manifest | {"format": 2}))
    with pytest.raises(UserError, match=r"has format 2, of a newer rgtg, and this one knows 1; update rgtg"):
        RunDirectory(configure())
    del manifest["format"]
    file.write_text(json.dumps(manifest))
    assert RunDirectory(configure()).has_begun("pairs")


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
