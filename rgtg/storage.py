"""Places: local paths, s3:// and every other URI that pyarrow reads; listing, atomic writes, copies of directories.

Credentials come from the environment alone (AWS_ACCESS_KEY_ID, AWS_PROFILE, an instance role ...), as does the address
of an S3 that is not Amazon's (AWS_ENDPOINT_URL), so neither is ever in a config, a manifest or a log.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from rgtg.errors import Unavailable, UserError


def resolve(place: str | Path) -> tuple[pafs.FileSystem, str]:
    """The file system of a place and the path in it. Raises UserError for a URI that nothing here can read."""
    text = str(place)
    if "://" not in text:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text))
    try:
        if text.startswith("s3://"):
            return _s3(), text.removeprefix("s3://").rstrip("/")
        filesystem, path = pafs.FileSystem.from_uri(text)
        return filesystem, path.rstrip("/")
    except ValueError as error:
        raise UserError(f"cannot read the place {text!r}: {error}") from error


def _s3() -> pafs.S3FileSystem:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not endpoint:
        return pafs.S3FileSystem(region=region)
    parts = urlsplit(endpoint)
    return pafs.S3FileSystem(region=region, scheme=parts.scheme, endpoint_override=parts.netloc)


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
    filesystem, path = resolve(place)
    info = _info(filesystem, path, place)
    if info.type == pafs.FileType.NotFound:
        raise UserError(f"there is nothing at {place!r}; give a file or a directory that exists")
    if info.type == pafs.FileType.File:
        return [info]
    files = [
        child
        for child in filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
        if child.type == pafs.FileType.File
        and child.path.endswith(suffixes)
        and not any(part.startswith((".", "_")) for part in child.path[len(path) + 1 :].split("/"))
    ]
    return sorted(files, key=lambda file: file.path)


def read_bytes(place: str) -> bytes:
    filesystem, path = resolve(place)
    with filesystem.open_input_stream(path) as stream:
        return stream.read()


def read_json(place: str) -> Any:
    return json.loads(read_bytes(place))


def write_bytes(place: str, data: bytes) -> None:
    """Write a file that a reader sees whole or not at all."""
    filesystem, path = resolve(place)
    if not isinstance(filesystem, pafs.LocalFileSystem):  # an object appears when its upload is complete
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)
        return
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


def write_json(place: str, value: Any) -> None:
    write_bytes(place, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def make_directory(place: str) -> None:
    """Raises UserError where it cannot be written to."""
    filesystem, path = resolve(place)
    try:
        filesystem.create_dir(path, recursive=True)
    except OSError as error:
        raise _failure(f"cannot write to {place!r}", error) from error


def remove(place: str) -> None:
    """Remove a directory and all below it; nothing happens where there is none."""
    filesystem, path = resolve(place)
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        filesystem.delete_dir(path)


def upload(directory: str | Path, place: str) -> None:
    """Copy a local directory to `place`, in the stead of what is there."""
    filesystem, path = resolve(place)
    if isinstance(filesystem, pafs.LocalFileSystem):
        parent = os.path.dirname(path)
        os.makedirs(parent, exist_ok=True)
        fresh = tempfile.mkdtemp(dir=parent, prefix=".")
        shutil.copytree(directory, fresh, dirs_exist_ok=True)
        os.chmod(fresh, 0o755)  # the copy took over the mode of a temporary directory
        shutil.rmtree(path, ignore_errors=True)
        os.replace(fresh, path)
        return
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
            pafs.copy_files(path, fresh, filesystem, pafs.LocalFileSystem())
            os.rename(fresh, target)
    return str(target)


def digest(place: str) -> str:
    """SHA-256 of all files at `place`, names and contents: it changes when anything in a directory does."""
    filesystem, path = resolve(place)
    total = hashlib.sha256()
    for file in list_files(place):
        total.update(file.path[len(path) :].encode() + b"\0")
        with filesystem.open_input_stream(file.path) as stream:
            while chunk := stream.read(1 << 22):
                total.update(chunk)
    return total.hexdigest()


def _info(filesystem: pafs.FileSystem, path: str, place: str) -> pafs.FileInfo:
    try:
        return filesystem.get_file_info(path)
    except OSError as error:
        raise _failure(f"cannot reach {place!r}", error) from error


def _failure(what: str, error: OSError) -> Exception:
    """A user's mistake, or a store that does not answer; from which its words alone tell."""
    first = str(error).splitlines()[0]
    local = error.errno is not None  # a disk answers with a number, and says the same again
    mistaken = local or any(word in first for word in ("NO_SUCH_BUCKET", "ACCESS_DENIED", "404", "403", "Forbidden"))
    return UserError(f"{what}: {first}") if mistaken else Unavailable(f"{what}: {first}; try again later")
