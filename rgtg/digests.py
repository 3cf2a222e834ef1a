"""SHA-256 of files and directories, which does not depend on where they are stored."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

from rgtg import s3_filesystem
from rgtg.storage import READERS, list_files, resolve
from rgtg.storage_errors import translate_errors


def file_digest(uri: str, path: str) -> str:
    """The SHA-256 of the content of one file, at `path` in the file system of `uri`."""
    filesystem, _ = resolve(uri)

    def content() -> str:
        total = hashlib.sha256()
        with filesystem.open_input_stream(path) as stream:
            while chunk := stream.read(1 << 22):
                total.update(chunk)
        return total.hexdigest()

    with translate_errors(f"cannot read {path!r}"):
        return s3_filesystem.retry_read(content)


def content_digest(uri: str) -> str:
    """The SHA-256 over names and contents of all files at `uri`; hidden files do not count."""
    _, path = resolve(uri)
    total, files = hashlib.sha256(), list_files(uri)
    with ThreadPoolExecutor(READERS) as pool:
        for file, content in zip(files, pool.map(lambda file: file_digest(uri, file.path), files), strict=True):
            total.update(f"{file.path[len(path) :]}\0{content}\n".encode(errors="surrogateescape"))
    return total.hexdigest()
