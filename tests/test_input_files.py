"""Which files are read: each real one once, and what cannot be read is named."""

import gzip
import os
from pathlib import Path

import pyarrow as pa
import pytest

from rgtg import input_files
from rgtg.errors import UserError
from rgtg.input_files import ENDINGS, Found, Unreadable, check_rows, check_share, find, lines, read_batches, read_rows


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
    assert list(found.ignored.values()) == [f"its name does not end with {ENDINGS}"]
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


JSONL = '{"prompt": "a,b"}\n{"prompt": "caf\u00e9\\nx"}\n'
CSV = 'prompt,n\n"a,b",01\n"caf\u00e9\nx",\n'
TSV = "prompt\tn\na,b\t01\n"


def packed(text, packing):
    data = text.encode()
    if packing == ".gz":
        return gzip.compress(data)
    return bytes(pa.compress(data, codec="zstd", asbytes=True)) if packing else data


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize(("name", "text"), [("x.jsonl", JSONL), ("x.ndjson", JSONL), ("x.csv", CSV)])
def test_text_formats_packed_and_plain(tmp_path, name, text, packing):
    (tmp_path / f"{name}{packing}").write_bytes(packed(text, packing))
    for place in (tmp_path, tmp_path / f"{name}{packing}"):  # a folder, and the file itself
        [file] = find([str(place)]).files
        rows = read_rows(file).rows()
        assert [row["prompt"] for row in rows] == ["a,b", "caf\u00e9\nx"]
        assert [row for batch in read_batches(file, ["prompt", "n"], 1) for row in batch.rows()] == rows
        assert check_rows(file, ["prompt"]) == (["prompt", "n"] if ".csv" in name else None)


def test_values_of_csv_stay_text(tmp_path):
    (tmp_path / "x.tsv").write_text(TSV)
    assert read_rows(*find([str(tmp_path)]).files).rows() == [{"prompt": "a,b", "n": "01"}]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("x.csv", b"prompt,n\na,b,c\n", "not a readable CSV file .*Expected 2 columns, got 3"),
        ("x.csv", b"n,n\na,b\n", "two columns have the same name"),
        ("x.csv", b"prompt\n\xff\n", "not a readable CSV file .*UTF"),
        ("x.csv", b"", "the file is empty"),
        ("x.csv.gz", gzip.compress(b"", mtime=0), "the file is empty"),
        ("x.jsonl.gz", b"no gzip", "cannot be unpacked"),
        ("x.jsonl.zst", b"no zstd", "cannot be unpacked"),
        ("x.jsonl.gz", gzip.compress(JSONL.encode(), mtime=0)[:-12], "cannot be unpacked|the file is empty"),
    ],
)
def test_text_files_that_cannot_be_read(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    [file] = find([str(tmp_path)]).files
    with pytest.raises(Unreadable, match=reason):
        read_rows(file)
    with pytest.raises(Unreadable, match=reason):
        check_rows(file, ["prompt"])


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(input_files, "ALWAYS_UNPACKED", 1 << 16)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b"a" * (1 << 24)))
    [file] = find([str(tmp_path)]).files
    with pytest.raises(Unreadable, match="it unpacks to more than 200 times its size"):
        read_rows(file)


def test_a_file_of_another_type_is_refused_by_name(tmp_path):
    (tmp_path / "x.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"x\.xlsx' cannot be read: its name does not end with .*; convert it"):
        find([str(tmp_path / "x.xlsx")])
    (tmp_path / "lines").write_text(JSONL)  # without an ending: JSON lines
    assert len(read_rows(*find([str(tmp_path / "lines")]).files).rows()) == 2
