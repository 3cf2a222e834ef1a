"""Copies of remote models on a machine that others use too."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rgtg import node_copy, sandbox, storage
from rgtg.errors import UserError

WEEK = node_copy.UNUSED_S


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RGTG_CACHE", str(tmp_path))
    monkeypatch.setattr(node_copy, "_held", {})
    return tmp_path / "copies"


@pytest.fixture
def fetch():
    def fill(directory):
        fill.times += 1
        Path(directory, "deep").mkdir()
        Path(directory, "deep", "weights").write_text("right")

    fill.times = 0
    return fill


def forget():
    """As where the process ended."""
    for descriptor in node_copy._held.values():
        os.close(descriptor)
    node_copy._held.clear()


def test_a_copy_is_made_once_and_private(fetch, cache):
    first = node_copy.copy_of(["a"], fetch)
    forget()
    assert node_copy.copy_of(["a"], fetch) == first
    assert fetch.times == 1
    assert cache.stat().st_mode & 0o777 == 0o700
    assert Path(first, "deep", "weights").read_text() == "right"
    assert node_copy.copy_of(["b"], fetch) != first


@pytest.mark.parametrize("damage", ["short", "gone", "more", "unmarked"])
def test_a_copy_that_is_not_whole_is_made_anew(fetch, damage):
    copy = Path(node_copy.copy_of(["a"], fetch))
    forget()
    weights = copy / "deep" / "weights"
    if damage == "short":
        weights.write_text("r")
    elif damage == "gone":
        weights.unlink()
    elif damage == "more":
        (copy / "more").write_text("x")
    else:
        (copy / node_copy.SIZES).unlink()
    assert Path(node_copy.copy_of(["a"], fetch), "deep", "weights").read_text() == "right"
    assert not (copy / "more").exists()
    assert fetch.times == 2


def test_a_cache_that_others_can_write_to_is_refused(fetch, cache, tmp_path):
    cache.mkdir(mode=0o700)
    cache.chmod(0o777)
    with pytest.raises(UserError, match="must be a directory that only this user can enter"):
        node_copy.copy_of(["a"], fetch)
    cache.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    cache.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="must be a directory that only this user can enter"):
        node_copy.copy_of(["a"], fetch)
    assert fetch.times == 0


def test_a_link_as_a_lock_leaves_the_file_behind_it(fetch, cache, tmp_path):
    copy = Path(node_copy.copy_of(["a"], fetch))
    forget()
    precious = tmp_path / "precious"
    precious.write_text("mine")
    copy.with_suffix(".lock").unlink()
    copy.with_suffix(".lock").symlink_to(precious)
    with pytest.raises(UserError, match="cannot open the lock"):
        node_copy.copy_of(["a"], fetch)
    assert precious.read_text() == "mine"


def test_what_nobody_uses_is_removed(fetch, cache):
    old, used, young = (Path(node_copy.copy_of([name], fetch)) for name in ("old", "used", "young"))
    forget()
    for path in (old.with_suffix(".lock"), used.with_suffix(".lock")):
        os.utime(path, (0, 0))
    with open(used.with_suffix(".lock")) as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        node_copy.copy_of(["new"], fetch)
    assert [path.exists() for path in (old, used, young)] == [False, True, True]


COPYING = (
    "import sys\n"
    "from pathlib import Path\n"
    "from rgtg.node_copy import copy_of\n"
    "def fetch(target):\n"
    "    Path(target, 'half').write_text('h')\n"
    "    print('half', flush=True)\n"
    "    sys.stdin.read()\n"
    "copy_of(['a'], fetch)\n"
)


@pytest.mark.parametrize("others", ["a", "b"])
def test_what_a_killed_process_left_of_its_copying_takes_no_room(fetch, cache, tmp_path, others):
    """Whichever model is taken next, and whatever the clock says; but not while it copies."""
    environment = os.environ | {"RGTG_CACHE": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment}
    process = subprocess.Popen([sys.executable, "-c", COPYING], **pipes)
    with process:
        assert process.stdout.readline() == b"half\n"
        node_copy.copy_of(["c"], fetch)
        assert len(list(cache.glob("*/half"))) == 1
        process.kill()
    node_copy.copy_of([others], fetch)
    assert not list(cache.glob("*/half"))
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2


def test_a_child_that_was_forked_meanwhile_keeps_no_lock(fetch, cache, monkeypatch):
    inherited = []

    def flock(descriptor, how, lock=fcntl.flock):
        inherited.append(os.dup(descriptor))
        lock(descriptor, how)

    monkeypatch.setattr(node_copy.fcntl, "flock", flock)
    copy = Path(node_copy.copy_of(["a"], fetch))
    monkeypatch.undo()
    for lock in (copy.with_suffix(".copying"), cache / "all.lock"):
        with open(lock) as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for descriptor in inherited:
        os.close(descriptor)


def test_a_cache_that_cannot_be_written_to_says_so(fetch, cache, monkeypatch):
    node_copy.copy_of(["a"], fetch)
    forget()

    def full(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(node_copy.os, "open", full)
    with pytest.raises(UserError, match="Read-only file system; free space .* or set RGTG_CACHE"):
        node_copy.copy_of(["a"], fetch)


def test_a_cache_below_a_file_says_so(fetch, monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("RGTG_CACHE", str(tmp_path / "file" / "cache"))
    for call in (lambda: node_copy.copy_of(["a"], fetch), sandbox.ensure):
        with pytest.raises(UserError, match="cannot write to the cache .*Not a directory; set RGTG_CACHE"):
            call()


def test_a_user_without_a_home_is_told_what_to_set(fetch, monkeypatch):
    monkeypatch.setenv("RGTG_CACHE", "")
    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr(node_copy.os.path, "expanduser", lambda path: path)  # as where no entry has the user's id
    for call in (lambda: node_copy.copy_of(["a"], fetch), sandbox.ensure):
        with pytest.raises(UserError, match="cannot find the home directory for the cache .*; set RGTG_CACHE"):
            call()


def test_a_copy_that_breaks_off_leaves_nothing(cache):
    def broken(directory):
        Path(directory, "half").write_text("h")
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        node_copy.copy_of(["a"], broken)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_another_process_waits_for_the_copying_and_not_for_the_end_of_who_copied(tmp_path):
    """A driver holds its copies for a night, and its actors take the same ones."""
    taking = (
        "import sys\n"
        "from pathlib import Path\n"
        "from rgtg.node_copy import copy_of\n"
        "def fetch(target):\n"
        "    Path(target, 'weights').write_text('w')\n"
        "print(copy_of(['model'], fetch), flush=True)\n"
        "sys.stdin.read()\n"
    )
    environment = os.environ | {"RGTG_CACHE": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    held = [subprocess.Popen([sys.executable, "-c", taking], **pipes) for _ in range(3)]
    try:
        assert len({process.stdout.readline() for process in held}) == 1  # while all of them live
    finally:
        for process in held:
            process.communicate()


def test_a_local_place_needs_no_copy(tmp_path):
    for uri in (str(tmp_path), "owner/model", "some-hub-id"):
        assert node_copy.local_copy(uri) == uri
    assert node_copy.local_copy(f"file://{tmp_path}/m") == f"{tmp_path}/m"


def test_a_remote_directory_is_copied_once_and_anew_when_it_changes(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("RGTG_CACHE", str(tmp_path))
    uri = f"{s3}/model"
    storage.write_bytes(f"{uri}/config.json", b"1")
    storage.write_bytes(f"{uri}/sub/weights", b"22")
    copy = node_copy.local_copy(uri)
    assert Path(copy, "config.json").read_bytes() == b"1"
    assert Path(copy, "sub/weights").read_bytes() == b"22"
    stamp = os.stat(Path(copy, "config.json"))
    assert node_copy.local_copy(uri) == copy
    assert os.stat(Path(copy, "config.json")).st_ino == stamp.st_ino
    storage.write_bytes(f"{uri}/config.json", b"333")
    changed = node_copy.local_copy(uri)
    assert changed != copy
    assert Path(changed, "config.json").read_bytes() == b"333"
    directories = [entry.path for entry in os.scandir(Path(copy).parent) if entry.is_dir()]
    assert sorted(directories) == sorted([copy, changed])  # and none half made


def test_a_copy_has_the_files_that_are_listed_and_no_others(s3, tmp_path, monkeypatch):
    """A key with .. would be written where that leads, and hidden files are none that a digest sees."""
    import boto3

    monkeypatch.setenv("RGTG_CACHE", str(tmp_path))
    storage.write_bytes(f"{s3}/model/config.json", b"1")
    for key in ("model/../../evil", "model/.hidden", "model/_hidden/weights"):
        boto3.client("s3").put_object(Bucket=s3.removeprefix("s3://"), Key=key, Body=b"x")
    assert sorted(os.listdir(node_copy.local_copy(f"{s3}/model"))) == [node_copy.SIZES, "config.json"]
