"""Files and directories, local, on S3 or at any other URI that pyarrow reads: list, read, write atomically, remove.

A `uri` is a local path (absolute, relative or with ~) or a URI, as a setting gives it; a `path` is what its file
system calls it. Credentials come from the environment alone (AWS_ACCESS_KEY_ID, AWS_PROFILE, an instance role), as
does the address of an S3 that is not Amazon's (AWS_ENDPOINT_URL): neither is in a config, a manifest or a log.
"""

import json
import os
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from rgtg import path_syntax, s3_filesystem
from rgtg.errors import UserError, redacted
from rgtg.path_syntax import join as join
from rgtg.storage_errors import translate_errors

NOT_REGULAR = "not a regular file"
DANGLING = "a link to a file that does not exist"

READERS = 16  # files read at once: an object store is slow to answer, and answers many requests as fast as one


def resolve(uri: str | Path) -> tuple[pafs.FileSystem, str]:
    """The file system of `uri`, and the path in it. Raises UserError for a scheme that is not read."""
    text = str(uri)
    if found := path_syntax.fault(text):
        raise UserError(f"cannot read {redacted(text)[:200]!r}: it {found}")
    if "://" not in text:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text))
    try:
        if text.startswith("s3://"):
            return s3_filesystem.filesystem(), text.removeprefix("s3://").rstrip("/")
        filesystem, path = pafs.FileSystem.from_uri(text)
        return filesystem, path.rstrip("/")
    except ValueError as error:
        raise UserError(f"cannot read {text!r}: {error}") from error


def absolute(uri: str, *, must_exist: bool = True) -> str:
    """A local path made absolute. A URI stays unchanged, and so does what does not exist: it may be a hub id."""
    if "://" in uri:
        return uri
    path = os.path.abspath(os.path.expanduser(uri))
    return path if not must_exist or os.path.exists(path) else uri


def is_local(uri: str) -> bool:
    return isinstance(resolve(uri)[0], pafs.LocalFileSystem)


def exists(uri: str) -> bool:
    filesystem, path = resolve(uri)
    return _info(filesystem, path, uri).type != pafs.FileType.NotFound


def list_files(uri: str, suffixes: tuple[str, ...] = ("",)) -> list[pafs.FileInfo]:
    """The files at or below `uri` with these suffixes, sorted by path, without hidden ones.

    Raises UserError where nothing exists at `uri`.
    """
    return [file for file, fault in scan(uri, suffixes) if fault is None]


def scan(uri: str, suffixes: tuple[str, ...]) -> list[tuple[pafs.FileInfo, str | None]]:
    """Every file at or below `uri`, sorted by path, and why `list_files` leaves it out, if so; hidden ones aside."""
    filesystem, path = resolve(uri)
    info = _info(filesystem, path, uri)
    if info.type == pafs.FileType.NotFound:
        raise UserError(f"there is nothing at {uri!r}; give a file or a directory that exists")
    if info.type != pafs.FileType.Directory:
        return [(info, None if info.type == pafs.FileType.File else NOT_REGULAR)]
    if isinstance(filesystem, pafs.LocalFileSystem):
        return _scan_locally(path, uri, suffixes)
    with translate_errors(f"cannot read {uri!r}"):
        below = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    files = [file for file in below if file.type != pafs.FileType.Directory and not _hidden(file.path, path)]
    return [(file, _fault(file, suffixes)) for file in sorted(files, key=lambda file: file.path)]


def _scan_locally(path: str, uri: str, suffixes: tuple[str, ...]) -> list[tuple[pafs.FileInfo, str | None]]:
    """`scan` of a local directory. Links are followed; a directory that several links lead to is visited once."""
    filesystem = pafs.LocalFileSystem()
    found: list[tuple[pafs.FileInfo, str | None]] = []
    directories: set[str] = set()  # with all links resolved

    def unreadable(error: OSError) -> None:
        found.append((pafs.FileInfo(error.filename), f"cannot be read ({error.strerror})"))

    for directory, below, names in os.walk(path, followlinks=True, onerror=unreadable):
        if (real := os.path.realpath(directory)) in directories:
            below.clear()
            continue
        directories.add(real)
        below[:] = sorted(name for name in below if not name.startswith((".", "_")))
        for name in sorted(names):
            whole = os.path.join(directory, name)
            if _hidden(whole, path):
                continue
            try:
                info = filesystem.get_file_info(whole)
            except UnicodeEncodeError as error:
                raise UserError(f"a name below {uri!r} is not UTF-8 ({error}); rename that file") from error
            found.append((info, _fault(info, suffixes)))
    return sorted(found, key=lambda pair: pair[0].path)


def _hidden(path: str, directory: str) -> bool:
    return any(part.startswith((".", "_")) for part in path[len(directory) + 1 :].split("/"))


def _fault(file: pafs.FileInfo, suffixes: tuple[str, ...]) -> str | None:
    if file.type == pafs.FileType.NotFound:
        return DANGLING
    if file.type != pafs.FileType.File:
        return NOT_REGULAR
    return None if file.path.endswith(suffixes) else f"its name does not end with {' or '.join(suffixes)}"


def read_bytes(uri: str, at_most: int | None = None) -> bytes:
    filesystem, path = resolve(uri)

    def read() -> bytes:
        with filesystem.open_input_file(path) as file:  # a stream would request it in small pieces
            return file.read(at_most)

    with translate_errors(f"cannot read {uri!r}"):
        return s3_filesystem.retry_read(read)


def read_json(uri: str) -> Any:
    return json.loads(read_bytes(uri))


def write_bytes(uri: str, data: bytes | pa.Buffer) -> None:
    """Write a file atomically: a reader sees it whole or not at all."""
    filesystem, path = resolve(uri)
    with translate_errors(f"cannot write {uri!r}"):
        if isinstance(filesystem, pafs.LocalFileSystem):
            _write_local(path, data)
        else:
            # In a thread of its own: a signal interrupts this one, and an unfinished stream would publish a part.
            with ThreadPoolExecutor(1) as writer:
                writer.submit(_write_object, filesystem, path, data).result()


def _write_object(filesystem: pafs.FileSystem, path: str, data: bytes | pa.Buffer) -> None:
    with filesystem.open_output_stream(path) as stream:
        stream.write(data)


def _write_local(path: str, data: bytes | pa.Buffer) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = _beside(path)
    # Not by tempfile, which ignores the umask: who may read a run is the user's decision.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _beside(path: str) -> str:
    """A new hidden name in the directory of `path`."""
    return os.path.join(os.path.dirname(path), f".{uuid.uuid4().hex}")


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def make_directory(uri: str) -> None:
    """Make a directory and its parents. Raises UserError where that is not permitted."""
    filesystem, path = resolve(uri)
    with translate_errors(f"cannot write to {uri!r}"):
        filesystem.create_dir(path, recursive=True)


def remove(uri: str) -> None:
    """Remove a file, or a directory with everything below it, if it exists."""
    filesystem, path = resolve(uri)
    with translate_errors(f"cannot remove {uri!r}"):
        kind = filesystem.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind == pafs.FileType.File:
            filesystem.delete_file(path)


def upload(directory: str | Path, uri: str) -> None:
    """Copy a local directory to `uri`, replacing what is there."""
    filesystem, path = resolve(uri)
    with translate_errors(f"cannot write {uri!r}"):
        local = pafs.LocalFileSystem()
        if isinstance(filesystem, pafs.LocalFileSystem):
            fresh = _beside(path)
            os.makedirs(fresh)
            pafs.copy_files(str(directory), fresh, local, local)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(fresh, path)
        else:
            remove(uri)
            filesystem.create_dir(path, recursive=True)
            pafs.copy_files(str(directory), path, local, filesystem)


def _info(filesystem: pafs.FileSystem, path: str, uri: str) -> pafs.FileInfo:
    with translate_errors(f"cannot reach {uri!r}"):
        return filesystem.get_file_info(path)
