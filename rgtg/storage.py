"""Files and directories, local, on s3:// or at any other URI that pyarrow reads: list, read, write atomically, remove.

Credentials come from the environment alone (AWS_ACCESS_KEY_ID, AWS_PROFILE, an instance role ...), as does the address
of an S3 that is not Amazon's (AWS_ENDPOINT_URL), so neither is ever in a config, a manifest or a log.
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

from rgtg import place_names, s3_filesystem
from rgtg.errors import UserError, redacted
from rgtg.place_names import join as join
from rgtg.storage_errors import translate_errors

NOT_REGULAR = "not a regular file"
DANGLING = "a link to what is not there"

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
            return s3_filesystem.filesystem(), text.removeprefix("s3://").rstrip("/")
        filesystem, path = pafs.FileSystem.from_uri(text)
        return filesystem, path.rstrip("/")
    except ValueError as error:
        raise UserError(f"cannot read the place {text!r}: {error}") from error


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
    """The files at or below `place` whose names end so, by path; none with . or _ in front. UserError: no place."""
    return [file for file, fault in scan(place, suffixes) if fault is None]


def scan(place: str, suffixes: tuple[str, ...]) -> list[tuple[pafs.FileInfo, str | None]]:
    """All that is at or below `place`, by path, and why `list_files` leaves it out; hidden files aside."""
    filesystem, path = resolve(place)
    info = _info(filesystem, path, place)
    if info.type == pafs.FileType.NotFound:
        raise UserError(f"there is nothing at {place!r}; give a file or a directory that exists")
    if info.type != pafs.FileType.Directory:
        return [(info, None if info.type == pafs.FileType.File else NOT_REGULAR)]
    if isinstance(filesystem, pafs.LocalFileSystem):
        return _scan_locally(path, place, suffixes)
    with translate_errors(f"cannot read {place!r}"):
        below = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    files = [file for file in below if file.type != pafs.FileType.Directory and not _hidden(file.path, path)]
    return [(file, _fault(file, suffixes)) for file in sorted(files, key=lambda file: file.path)]


def _scan_locally(path: str, place: str, suffixes: tuple[str, ...]) -> list[tuple[pafs.FileInfo, str | None]]:
    """The same of a local directory: links are followed, and a directory that links lead to again is met once."""
    filesystem = pafs.LocalFileSystem()
    found: list[tuple[pafs.FileInfo, str | None]] = []
    directories: set[str] = set()  # as they are in reality

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
                raise UserError(f"a name below {place!r} is not UTF-8 ({error}); rename that file") from error
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


def read_bytes(place: str, at_most: int | None = None) -> bytes:
    filesystem, path = resolve(place)

    def read() -> bytes:
        with filesystem.open_input_file(path) as file:  # a stream would ask for it in small pieces
            return file.read(at_most)

    with translate_errors(f"cannot read {place!r}"):
        return s3_filesystem.retry_read(read)


def read_json(place: str) -> Any:
    return json.loads(read_bytes(place))


def write_bytes(place: str, data: bytes | pa.Buffer) -> None:
    """Write a file that a reader sees whole or not at all."""
    filesystem, path = resolve(place)
    with translate_errors(f"cannot write {place!r}"):
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
    temporary = _beside(path)
    # Not by tempfile, whose mode no umask changes: who may read a run is for the user to say.
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
    """A name of nothing yet in the directory of `path`, hidden."""
    return os.path.join(os.path.dirname(path), f".{uuid.uuid4().hex}")


def write_json(place: str, value: Any) -> None:
    write_bytes(place, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def make_directory(place: str) -> None:
    """Raises UserError where it cannot be written to."""
    filesystem, path = resolve(place)
    with translate_errors(f"cannot write to {place!r}"):
        filesystem.create_dir(path, recursive=True)


def remove(place: str) -> None:
    """Remove a file, or a directory and all below it; nothing happens where there is none."""
    filesystem, path = resolve(place)
    with translate_errors(f"cannot remove {place!r}"):
        kind = filesystem.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind == pafs.FileType.File:
            filesystem.delete_file(path)


def upload(directory: str | Path, place: str) -> None:
    """Copy a local directory to `place`, in the stead of what is there."""
    filesystem, path = resolve(place)
    with translate_errors(f"cannot write {place!r}"):
        local = pafs.LocalFileSystem()
        if isinstance(filesystem, pafs.LocalFileSystem):
            fresh = _beside(path)
            os.makedirs(fresh)
            pafs.copy_files(str(directory), fresh, local, local)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(fresh, path)
        else:
            remove(place)
            filesystem.create_dir(path, recursive=True)
            pafs.copy_files(str(directory), path, local, filesystem)


def _info(filesystem: pafs.FileSystem, path: str, place: str) -> pafs.FileInfo:
    with translate_errors(f"cannot reach {place!r}"):
        return filesystem.get_file_info(path)
