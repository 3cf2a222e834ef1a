"""Copies of remote models on this machine: made once for all its processes, private to the user, checked before use.

They are in `$RGTG_CACHE/copies` (by default ~/.cache/rgtg/copies), each with a lock that its readers share. A copy
that no process has used for a week is removed.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow.fs as pafs

from rgtg import s3_filesystem
from rgtg.errors import UserError
from rgtg.storage import READERS, is_local, list_files, resolve
from rgtg.storage_errors import translate_errors

UNUSED_S = 7 * 24 * 3600
SIZES = ".sizes.json"  # file with the sizes of a copy's files: written last
FRESH = ".fresh-"  # part of the name of a copy in the making

_held: dict[Path, int] = {}  # descriptors of the locks that this process holds, until it ends


def local_copy(uri: str) -> str:
    """A local path with the files at `uri`: a local path itself, or a copy of a remote directory, made once a node.

    The key of the copy is the names, sizes and times of the files, so that a changed model is fetched again.
    """
    if "://" not in uri or is_local(uri):
        return uri if "://" not in uri else resolve(uri)[1]
    filesystem, path = resolve(uri)
    files = list_files(uri)  # only these: a key with .. would leave the copy's directory

    def fetch(target: str) -> None:
        def one(file: pafs.FileInfo) -> None:
            copy = f"{target}/{file.path[len(path) + 1 :]}"
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            s3_filesystem.retry_read(lambda: pafs.copy_files(file.path, copy, filesystem, pafs.LocalFileSystem()))

        with (
            translate_errors(f"cannot copy {uri!r} to {os.path.dirname(target)!r}"),
            ThreadPoolExecutor(READERS) as pool,
        ):
            list(pool.map(one, files))

    return copy_of([uri, *((f.path, f.size, f.mtime_ns) for f in files)], fetch)


def copy_of(what: list[object], fetch: Callable[[str], None]) -> str:
    """The directory that `fetch` fills. Its key is `what`: names, sizes and times of files.

    Raises UserError where the cache is not private to this user.
    """
    home = _home()
    target = home / hashlib.sha256(repr(what).encode()).hexdigest()[:24]
    with _locked(home / "all.lock", fcntl.LOCK_EX):
        _remove_unused(home, target)
    if target not in _held:
        # The actors of a machine start together: one copies, and the others wait for the copy, not for its process.
        with _locked(target.with_suffix(".copying"), fcntl.LOCK_EX):
            lock = target.with_suffix(".lock")
            used = _open(lock)
            fcntl.flock(used, fcntl.LOCK_SH)  # now no other process removes it
            os.utime(lock)
            try:
                if not _is_whole(target):
                    _fill(target, fetch)
            except BaseException:
                os.close(used)
                raise
            _held[target] = used
    if not _is_whole(target):
        raise UserError(f"the copy {str(target)!r} of a model changed while it was in use; run the command again")
    return str(target)


def cache_directory() -> Path:
    """`$RGTG_CACHE`, by default ~/.cache/rgtg, created if missing. Raises UserError where that fails."""
    given = os.environ.get("RGTG_CACHE") or "~/.cache/rgtg"
    try:
        base = Path(given).expanduser().absolute()
        base.mkdir(parents=True, exist_ok=True)
    except RuntimeError as error:  # in a container whose user is not in /etc/passwd and has no HOME
        raise UserError(f"cannot find the home directory for the cache {given!r}; set RGTG_CACHE") from error
    except OSError as error:
        raise UserError(f"cannot write to the cache {given!r}: {error.strerror}; set RGTG_CACHE") from error
    return base


def _home() -> Path:
    """The directory of all copies, private to this user."""
    home = cache_directory() / "copies"
    try:
        with suppress(FileExistsError):
            home.mkdir(mode=0o700)
        found = home.lstat()
    except OSError as error:
        raise UserError(f"cannot write to the cache {str(home)!r}: {error.strerror}; set RGTG_CACHE") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UserError(
            f"the cache {str(home)!r} must be a directory that only this user can enter; chmod it to 0700, or set "
            "RGTG_CACHE"
        )
    return home


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        remedy = "remove it" if error.errno == errno.ELOOP else "free space and make it writable, or set RGTG_CACHE"
        raise UserError(f"cannot open the lock {str(path)!r}: {error.strerror}; {remedy}") from error


@contextmanager
def _locked(path: Path, how: int) -> Iterator[bool]:
    """Hold a lock. Yields whether it was free: with LOCK_NB it may not be, and is not held then."""
    descriptor = _open(path)
    try:
        free = True
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            free = False
        yield free
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child forked in the meantime has the descriptor too
        os.close(descriptor)


def _fill(target: Path, fetch: Callable[[str], None]) -> None:
    shutil.rmtree(target, ignore_errors=True)
    fresh = tempfile.mkdtemp(dir=target.parent, prefix=f"{target.name}{FRESH}")
    try:
        fetch(fresh)
        Path(fresh, SIZES).write_text(json.dumps(_sizes(Path(fresh))))
        os.rename(fresh, target)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _sizes(directory: Path) -> dict[str, int]:
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != SIZES)
    return {str(path.relative_to(directory)): path.stat().st_size for path in sorted(files)}


def _is_whole(target: Path) -> bool:
    try:
        return json.loads((target / SIZES).read_text()) == _sizes(target)
    except (OSError, ValueError):
        return False


def _remove_unused(home: Path, wanted: Path) -> None:
    """Remove copies unused for a week, and what killed processes left unfinished.

    The locks stay: another process may just have opened them.
    """
    before = time.time() - UNUSED_S
    for lock in home.glob("*.lock"):
        copy = lock.with_suffix("")
        if copy in (wanted, home / "all") or lock.lstat().st_mtime > before:
            continue
        with _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB) as free:
            if free:
                shutil.rmtree(copy, ignore_errors=True)
    # Unfinished copies go at once: a model may fill half a disk, and the next attempt needs that half.
    for fresh in home.glob(f"*{FRESH}*"):
        with _locked(home / f"{fresh.name.partition(FRESH)[0]}.copying", fcntl.LOCK_EX | fcntl.LOCK_NB) as free:
            if free:
                shutil.rmtree(fresh, ignore_errors=True)
