"""Which files are read: each real one once, and what cannot be read is named."""

import os
from pathlib import Path

import pytest

from rgtg.errors import UserError
from rgtg.input_files import Found, check_share, find, lines


def names(found) -> list[str]:
    return [Path(file.path).name for file in found.files]


@pytest.fixture
def folder(tmp_path) -> Path:
    place = tmp_path / "in"
    place.mkdir()
    (place / "a.jsonl").write_text('{"prompt": "one"}\n')
    return place


def test_a_link_to_nothing_is_named(folder):
    (folder / "b.jsonl").symlink_to("/nowhere/b.jsonl")
    (folder / "volume").symlink_to("/nowhere/volume")
    found = find([str(folder)])
    assert names(found) == ["a.jsonl"]
    assert {Path(path).name: reason for path, reason in found.unreadable.items()} == {
        "b.jsonl": "a link to a file that does not exist",
        "volume": "a link to a file that does not exist",
    }


def test_a_loop_of_links_gives_every_file_once(folder):
    (folder / "again").symlink_to(folder)
    (folder / "below").mkdir()
    (folder / "below" / "up").symlink_to("../..")
    found = find([str(folder)])
    assert names(found) == ["a.jsonl"]
    assert not found.unreadable


def test_a_linked_directory_is_read(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.jsonl").write_text("{}\n")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert names(find([str(folder)])) == ["a.jsonl", "b.jsonl"]


def test_one_file_by_two_names_or_places_is_read_once(folder):
    (folder / "b.jsonl").symlink_to("a.jsonl")
    found = find([str(folder), str(folder / "a.jsonl"), str(folder)])
    assert names(found) == ["a.jsonl"]
    assert list(found.ignored.values()) == [f"the same file as {str(folder / 'a.jsonl')!r}"]
    assert not found.unreadable


@pytest.mark.parametrize("name", ["what?.jsonl", "all*.jsonl", "a[bc].jsonl", "{x}.jsonl", " .jsonl", "%20.jsonl"])
def test_names_are_names_and_no_patterns(folder, name):
    (folder / name).write_text("{}\n")
    assert sorted(names(find([str(folder)]))) == sorted(["a.jsonl", name])


def test_a_pipe_is_named_and_not_waited_for(folder):
    os.mkfifo(folder / "b.jsonl")
    assert list(find([str(folder)]).unreadable.values()) == ["not a regular file"]
    assert list(find([str(folder / "b.jsonl")]).unreadable.values()) == ["not a regular file"]


def test_a_directory_that_cannot_be_listed_is_named(folder, monkeypatch):
    (folder / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert list(find([str(folder)]).unreadable.values()) == ["cannot be read (Permission denied)"]


def test_a_hidden_directory_is_not_looked_into(folder, monkeypatch):
    """Such as a `.Trash` that is for its owner alone."""
    for name in (".Trash", "_old"):
        (folder / name).mkdir()
        (folder / name / "b.jsonl").write_text("{}")
    before, scandir = find([str(folder)]), os.scandir
    listed = []
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path).name) or scandir(path))
    assert find([str(folder)]) == before
    assert not {".Trash", "_old"} & set(listed)
    assert not before.skipped


def test_other_files_do_not_count(folder):
    (folder / "README.md").write_text("x")
    found = find([str(folder)])
    assert list(found.ignored.values()) == ["its name does not end with .parquet or .jsonl or .json"]
    assert not found.unreadable


def test_too_many_unreadable_files_are_one_sentence():
    check_share(9, Found(unreadable={"a": "torn"}), 0.1, "generate.prompts")
    with pytest.raises(
        UserError, match=r"^2 of the 10 files of generate.prompts cannot be read, such as 'a' \(torn\)"
    ):
        check_share(8, Found(unreadable={"a": "torn", "b": "torn"}), 0.1, "generate.prompts")


def test_where_no_file_can_be_read_the_reasons_are_said():
    found = Found(unreadable={"a": "torn"}, ignored={"b": "other"})
    with pytest.raises(UserError, match=r"none of the files of x can be read \(a: torn; b: other\)"):
        check_share(0, found, 1.0, "x")
    assert lines(found.skipped | {"c\n": "d"}) == "\n  skipped a: torn\n  skipped b: other\n  skipped c : d"
