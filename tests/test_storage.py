"""Places: local paths and object stores alike; what a reader sees of a write that broke off."""

import errno
import os
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from rgtg import storage
from rgtg.errors import TransientError, UserError


def names(uri, *arguments):
    _, path = storage.resolve(uri)
    return [file.path.removeprefix(path + "/") for file in storage.list_files(uri, *arguments)]


def test_local_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for uri, path in (
        ("a/b", tmp_path / "a/b"),
        ("./a/", tmp_path / "a"),
        (tmp_path / "x", tmp_path / "x"),
        ("~/m", tmp_path / "home/m"),
        (f"file://{tmp_path}/y/", tmp_path / "y"),
    ):
        filesystem, found = storage.resolve(uri)
        assert isinstance(filesystem, pafs.LocalFileSystem)
        assert found == str(path)
        assert storage.is_local(str(uri))


def test_s3_places(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    filesystem, path = storage.resolve("s3://bucket/some/prefix/")
    assert isinstance(filesystem, pafs.S3FileSystem)
    assert path == "bucket/some/prefix"
    assert not storage.is_local("s3://bucket/x")


@pytest.mark.parametrize("uri", ["nope://bucket/x", "://", "http://host/file.parquet"])
def test_a_uri_that_nothing_reads(uri):
    with pytest.raises(UserError, match=f"cannot read '{uri}'"):
        storage.resolve(uri)


def test_join():
    assert storage.join("s3://b/p/", "x", "y.json") == "s3://b/p/x/y.json"
    assert storage.join(Path("a"), "b") == "a/b"


def test_what_is_written_is_read(root):
    uri = storage.join(root, "deep", "down", "x.json")
    assert not storage.exists(uri)
    storage.write_json(uri, {"é": [1, None]})
    assert storage.exists(uri)
    assert storage.read_json(uri) == {"é": [1, None]}
    storage.write_bytes(uri, b"other")
    assert storage.read_bytes(uri) == b"other"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    uri = str(tmp_path / "x")
    storage.write_bytes(uri, b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "disk full")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(TransientError, match=r"cannot write .*No space left.*try again later"):
                storage.write_bytes(uri, b"new")
        assert storage.read_bytes(uri) == b"old"
        assert os.listdir(tmp_path) == ["x"]


def test_a_reader_never_sees_half_a_file(tmp_path, monkeypatch):
    """When the new name appears, its content is complete and on the disk."""
    uri, seen = str(tmp_path / "x"), []
    storage.write_bytes(uri, b"old")
    replace = os.replace

    def look(source, target):
        seen.append((storage.read_bytes(uri), Path(source).read_bytes(), Path(source).parent))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    storage.write_bytes(uri, b"new" * 1000)
    assert seen == [(b"old", b"new" * 1000, tmp_path)]  # on the same file system, where a rename is atomic
    assert storage.read_bytes(uri) == b"new" * 1000
    assert os.stat(uri).st_mode & 0o777 == 0o644


def test_listing_hides_what_begins_with_a_dot_or_an_underscore(root):
    for name in ("b.parquet", "a/c.parquet", "_SUCCESS", ".tmp.parquet", "_checkpoint/d.parquet", "a/.x/e.parquet"):
        storage.write_bytes(storage.join(root, name), b"")
    storage.write_bytes(storage.join(root, "a/notes.txt"), b"")
    assert names(root) == ["a/c.parquet", "a/notes.txt", "b.parquet"]
    assert names(root, (".parquet",)) == ["a/c.parquet", "b.parquet"]
    assert names(root, (".json", ".txt")) == ["a/notes.txt"]


def test_listing_a_place_below_hidden_ones(root):
    uri = storage.join(root, "_work", ".x")
    storage.write_bytes(storage.join(uri, "a"), b"")
    assert names(uri) == ["a"]


def test_listing_one_file(root):
    uri = storage.join(root, "a.parquet")
    storage.write_bytes(uri, b"123")
    (file,) = storage.list_files(uri, (".parquet",))
    assert file.size == 3


def test_listing_nothing(root):
    uri = storage.join(root, "none")
    with pytest.raises(UserError, match=f"there is nothing at '{uri}'"):
        storage.list_files(uri)


def test_upload_takes_the_place_of_what_is_there(root, tmp_path):
    target = storage.join(root, "run", "model")
    storage.write_bytes(storage.join(target, "stale"), b"old")
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    source.chmod(0o700)  # as temporary directories are
    (source / "a").write_bytes(b"1")
    (source / "sub" / "b").write_bytes(b"2")
    storage.upload(source, target)
    assert names(target) == ["a", "sub/b"]
    assert storage.read_bytes(storage.join(target, "sub/b")) == b"2"
    assert names(storage.join(root, "run")) == ["model/a", "model/sub/b"]
    if storage.is_local(target):
        assert os.listdir(os.path.dirname(target)) == ["model"]
        assert os.stat(target).st_mode & 0o777 == 0o755  # other users' jobs read it too
    assert (source / "a").exists()


def test_remove(root):
    uri = storage.join(root, "x")
    storage.remove(uri)
    storage.write_bytes(storage.join(uri, "a/b"), b"")
    storage.remove(uri)
    assert not storage.exists(uri)
    assert not storage.exists(storage.join(uri, "a/b"))


def test_make_directory(root, tmp_path):
    uri = storage.join(root, "a", "b")
    storage.make_directory(uri)
    storage.make_directory(uri)
    assert storage.exists(uri)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot write to"):
        storage.make_directory(str(tmp_path / "file" / "below"))


def test_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert storage.absolute("here") == str(tmp_path / "here")
    assert storage.absolute("owner/model") == "owner/model"  # what is not there may be a hub id
    assert storage.absolute("runs", must_exist=False) == str(tmp_path / "runs")
    assert storage.absolute("s3://bucket/x") == "s3://bucket/x"
