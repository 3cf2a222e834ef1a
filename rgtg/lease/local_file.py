"""The file of a lease on a disk: it changes under its own lock."""

import errno
import fcntl
import os
from contextlib import suppress
from typing import Any, BinaryIO, cast

from rgtg.lease.holder import MAX_BYTES, parsed
from rgtg.storage_errors import translate_errors


class LocalFile:
    """A file that changes under its own lock."""

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self) -> tuple[dict[str, Any] | None, str | None]:
        try:
            with self._open(os.O_RDONLY, "rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_SH)
                return parsed(stream.read(MAX_BYTES))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # replace() then says what is wrong
                return None, None
            raise

    def replace(self, content: bytes, version: str | None) -> str | None:
        """As LeaseFile says. Raises UserError or TransientError where the file cannot be written."""
        with translate_errors(f"cannot write to {os.path.dirname(self.path)!r}"):
            return self._replace(content, version)

    def _replace(self, content: bytes, version: str | None) -> str | None:
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        while True:
            with self._open(os.O_RDWR | os.O_CREAT, "r+b") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                try:
                    if not os.path.samestat(os.fstat(stream.fileno()), os.stat(self.path)):
                        continue  # deleted and created again before the lock was ours
                except FileNotFoundError:
                    continue
                if parsed(stream.read(MAX_BYTES))[1] != version:
                    return None
                stream.seek(0)
                stream.write(content)
                stream.truncate()
                stream.flush()
                return parsed(content)[1]

    def _open(self, flags: int, mode: str) -> BinaryIO:
        """Open the file, but no link: the file behind it would be overwritten."""
        return cast(BinaryIO, open(os.open(self.path, flags | os.O_NOFOLLOW, 0o644), mode))

    def delete(self, version: str) -> None:
        with suppress(FileNotFoundError), self._open(os.O_RDONLY, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            if parsed(stream.read(MAX_BYTES))[1] == version:
                os.unlink(self.path)
        with suppress(OSError):  # a job that was refused leaves no empty directory
            os.rmdir(os.path.dirname(self.path))
