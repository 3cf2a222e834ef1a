"""Places: local paths, s3:// and every other URI that pyarrow reads; listing, atomic writes, copies of directories.

Credentials come from the environment alone (AWS_ACCESS_KEY_ID, AWS_PROFILE, an instance role ...), as does the address
of an S3 that is not Amazon's (AWS_ENDPOINT_URL), so neither is ever in a config, a manifest or a log.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rgtg import object_store, place_names
from rgtg.errors import Unavailable, UserError, first_line, redacted

READERS = 16  # files read at once: an object store answers slowly, and many requests as fast as one


def resolve(place: str | Path) -> tuple[pafs.FileSystem, str]:
    """The file system of a place and the path in it. Raises UserError for a URI that nothing here can read."""
    text = str(place)
    if found := place_names.fault(text):
        raise UserError(f"cannot read the place {redacted(text)[:200]!r}: it {found}")
    if "://" not in text:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text))
    try:
        if text.startswith("s3://"):
            return object_store.filesystem(), text.removeprefix("s3://").rstrip("/")
        filesystem, path = pafs.FileSystem.from_uri(text)
        return filesystem, path.rstrip("/")
    except ValueError as error:
        raise UserError(f"cannot read the place {text!r}: {error}") from error


def join(place: str | Path, *names: str) -> str:
    """A place below another."""
    return "/".join([str(place).rstrip("/"), *names])


def absolute(place: str, *, must_exist: bool = True) -> str:
    """A local path made absolute. A URI, and what is not there and may be a hub id, stays as it is."""
    if "://" in place:
        return place
    path = os.path.abspath(os.path.expanduser(place))
    return path if not must_exist or os.path.exists(path) else place


def is_local(place: str) -> bool:
    return isinstance(resolve(place)[0], pafs.LocalFileSystem)


def exists(place: str) -> bool:
    filesystem, path = resolve(place)
    return _info(filesystem, path, place).type != pafs.FileType.NotFound


def list_files(place: str, suffixes: tuple[str, ...] = ("",)) -> list[pafs.FileInfo]:
    """The files at or below `place` whose names end so, by path; hidden ones (with a . or _ in front) are left out.

    Raises UserError where there is no such place.
    """
    return [file for file, fault in _found(place, suffixes) if fault is None]


def passed_over(place: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    """What stands in the directory `place`, hidden files aside, and is not in `list_files`, with the reason."""
    return {file.path: fault for file, fault in _found(place, suffixes) if fault}


def _found(place: str, suffixes: tuple[str, ...]) -> list[tuple[pafs.FileInfo, str | None]]:
    """All that is at or below `place`, by path, and why it is none of the files with these suffixes."""
    filesystem, path = resolve(place)
    info = _info(filesystem, path, place)
    if info.type == pafs.FileType.NotFound:
        raise UserError(f"there is nothing at {place!r}; give a file or a directory that exists")
    if info.type == pafs.FileType.File:
        return [(info, None)]
    with _explained(f"cannot read {place!r}"):
        below = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    try:
        below.sort(key=lambda file: file.path)
    except UnicodeDecodeError as error:
        raise UserError(f"a name below {place!r} is not UTF-8 ({error}); rename that file") from error
    return [
        (file, _fault(file, suffixes))
        for file in below
        if file.type != pafs.FileType.Directory
        and not any(part.startswith((".", "_")) for part in file.path[len(path) + 1 :].split("/"))
    ]


def _fault(file: pafs.FileInfo, suffixes: tuple[str, ...]) -> str | None:
    if file.type != pafs.FileType.File:
        return "not a regular file"
    return None if file.path.endswith(suffixes) else f"its name does not end with {' or '.join(suffixes)}"


def read_bytes(place: str, at_most: int | None = None) -> bytes:
    filesystem, path = resolve(place)

    def read() -> bytes:
        with filesystem.open_input_file(path) as file:  # a stream would ask for it in small pieces
            return file.read(at_most)

    with _explained(f"cannot read {place!r}"):
        return object_store.patiently(read)


def read_tables(
    place: str, columns: list[str] | None = None, keep: Callable[[str], bool] = lambda path: True
) -> Iterator[pa.Table]:
    """The Parquet files at `place` whose path is to `keep`, a table each, by name; some are read ahead."""
    filesystem, _ = resolve(place)

    def read(file: pafs.FileInfo) -> pa.Table:
        return object_store.patiently(lambda: pq.ParquetFile(file.path, filesystem=filesystem).read(columns=columns))

    files = [file for file in list_files(place, (".parquet",)) if keep(file.path)]
    with ThreadPoolExecutor(READERS) as pool, _explained(f"cannot read {place!r}"):
        for start in range(0, len(files), READERS):
            yield from pool.map(read, files[start : start + READERS])


def read_json(place: str) -> Any:
    return json.loads(read_bytes(place))


def write_bytes(place: str, data: bytes | pa.Buffer) -> None:
    """Write a file that a reader sees whole or not at all."""
    filesystem, path = resolve(place)
    with _explained(f"cannot write {place!r}"):
        if isinstance(filesystem, pafs.LocalFileSystem):
            _write_local(path, data)
        else:
            # In a thread, since a signal interrupts this one: a stream that is dropped half way publishes what it has.
            with ThreadPoolExecutor(1) as writer:
                writer.submit(_write_object, filesystem, path, data).result()


def _write_object(filesystem: pafs.FileSystem, path: str, data: bytes | pa.Buffer) -> None:
    with filesystem.open_output_stream(path) as stream:
        stream.write(data)


def _write_local(path: str, data: bytes | pa.Buffer) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_table(place: str, table: pa.Table) -> None:
    """Write a Parquet file that a reader sees whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_bytes(place, sink.getvalue())


def write_json(place: str, value: Any) -> None:
    write_bytes(place, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def make_directory(place: str) -> None:
    """Raises UserError where it cannot be written to."""
    filesystem, path = resolve(place)
    with _explained(f"cannot write to {place!r}"):
        filesystem.create_dir(path, recursive=True)


def remove(place: str) -> None:
    """Remove a file, or a directory and all below it; nothing happens where there is none."""
    filesystem, path = resolve(place)
    with _explained(f"cannot remove {place!r}"):
        kind = filesystem.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind == pafs.FileType.File:
            filesystem.delete_file(path)


def upload(directory: str | Path, place: str) -> None:
    """Copy a local directory to `place`, in the stead of what is there."""
    filesystem, path = resolve(place)
    with _explained(f"cannot write {place!r}"):
        if isinstance(filesystem, pafs.LocalFileSystem):
            parent = os.path.dirname(path)
            os.makedirs(parent, exist_ok=True)
            fresh = tempfile.mkdtemp(dir=parent, prefix=".")
            shutil.copytree(directory, fresh, dirs_exist_ok=True)
            os.chmod(fresh, 0o755)  # the copy took over the mode of a temporary directory
            shutil.rmtree(path, ignore_errors=True)
            os.replace(fresh, path)
        else:
            remove(place)
            filesystem.create_dir(path, recursive=True)
            pafs.copy_files(str(directory), path, pafs.LocalFileSystem(), filesystem)


def local_copy(place: str) -> str:
    """A local path with what is at `place`: the place itself, or a copy of a remote directory, made once a node.

    The copy is keyed by the names, sizes and times of the files, so a changed model is fetched anew.
    """
    if "://" not in place or is_local(place):
        return place if "://" not in place else resolve(place)[1]
    filesystem, path = resolve(place)
    files = list_files(place)
    key = hashlib.sha256(repr([place, *((f.path, f.size, f.mtime_ns) for f in files)]).encode()).hexdigest()[:24]
    target = Path(tempfile.gettempdir(), f"rgtg-{os.getuid()}", key)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the actors of a machine start together: one of them copies
        if not target.is_dir():
            fresh = tempfile.mkdtemp(dir=target.parent)
            try:
                with _explained(f"cannot read {place!r}"):
                    object_store.patiently(lambda: pafs.copy_files(path, fresh, filesystem, pafs.LocalFileSystem()))
                os.rename(fresh, target)
            except BaseException:
                shutil.rmtree(fresh)
                raise
    return str(target)


def hashed_files(place: str, suffixes: tuple[str, ...] = ("",)) -> list[tuple[pafs.FileInfo, str]]:
    """The files that `list_files` gives, each with the SHA-256 of its content."""
    filesystem, _ = resolve(place)

    def content(file: pafs.FileInfo) -> str:
        total = hashlib.sha256()
        with filesystem.open_input_stream(file.path) as stream:
            while chunk := stream.read(1 << 22):
                total.update(chunk)
        return total.hexdigest()

    files = list_files(place, suffixes)
    with ThreadPoolExecutor(READERS) as pool, _explained(f"cannot read {place!r}"):
        return list(
            zip(files, pool.map(lambda file: object_store.patiently(lambda: content(file)), files), strict=True)
        )


def digest(place: str) -> str:
    """SHA-256 of all files at `place`, names and contents: it changes when anything in a directory does."""
    _, path = resolve(place)
    total = hashlib.sha256()
    for file, content in hashed_files(place):
        total.update(f"{file.path[len(path) :]}\0{content}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def _info(filesystem: pafs.FileSystem, path: str, place: str) -> pafs.FileInfo:
    with _explained(f"cannot reach {place!r}"):
        return filesystem.get_file_info(path)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Errors of a disk or a store as one sentence: UserError for a mistake, Unavailable where waiting may help."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if of_store := object_store.failure_of_store(what, str(error)):
            raise of_store from None  # it says all of it
        first = first_line(error)
        if isinstance(error, OSError) and error.errno is not None:  # of a disk, whose path is said already
            first = os.strerror(error.errno)
        if _is_lasting(error):
            raise UserError(f"{what}: {first}") from error
        raise Unavailable(f"{what}: {first}; try again later") from error


def _is_lasting(error: Exception) -> bool:
    """Whether the same call would fail again: no such file or permission; not a full disk."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR)
    return isinstance(error, (FileNotFoundError, pa.ArrowException)) or "is a directory" in str(error)
