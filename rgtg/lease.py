"""Lease: one job at a time writes to a run directory, and a job that died holds nobody up for long.

A small file names its holder and changes every few seconds while the holder lives. Whoever meets it watches: one that
changes belongs to a job that lives, one that stays as it is may be taken over. So no clocks are compared. Every change
is conditional on what was there before: under a lock of the file on a disk, by If-Match on S3.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, BinaryIO, cast

from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ResponseStreamingError,
    SSLError,
)
from urllib3.exceptions import HTTPError

from rgtg import s3_filesystem, storage
from rgtg.errors import TransientError, UserError
from rgtg.lease_holder import is_dead, parsed, started, who

logger = logging.getLogger(__name__)

NAME = "_lease.json"
RENEW_S = 5.0
MAX_BYTES = 1 << 16  # that are read of the file, whatever lies there
EXPIRES_S = 60.0  # many renewals: a holder may be slow, or its store


class Lease:
    """A context manager around a job on `place`. On entering it raises UserError where another job is at work there.

    Should the lease be lost on the way (the machine slept, and another job took over), `on_loss` is called from a
    thread: what the job would write now is no longer its own.
    """

    def __init__(
        self, place: str, on_loss: Callable[[str], None], renew_s: float = RENEW_S, expires_s: float = EXPIRES_S
    ) -> None:
        self.place, self.on_loss, self.renew_s, self.expires_s = place, on_loss, renew_s, expires_s
        self.file = _file(storage.join(place, NAME))
        self.holder = {"host": socket.gethostname(), "pid": os.getpid(), "began": int(time.time())}
        self.holder |= {"id": uuid.uuid4().hex, "process": started(os.getpid())}
        self.count = 0
        self.version: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        found, version = self.file.read()
        if found and not is_dead(found):
            version = self._watch(found, version)
        self.version = self._replace(version)
        if self.version is None:
            raise UserError(_sentence(self.place, self.file.read()[0]))
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        if self.version is not None:
            with suppress(Exception):  # it would only keep the next job waiting
                self.file.delete(self.version)

    def _watch(self, found: dict[str, Any], version: str | None) -> str | None:
        """The version that may be replaced, after it stayed as it is for long enough."""
        logger.info(f"waiting for at most {self.expires_s:.0f} s: {who(found)} may still write to {self.place!r}")
        until = time.monotonic() + self.expires_s
        while time.monotonic() < until:
            self._ended.wait(min(1.0, self.renew_s))
            now, current = self.file.read()
            if current is None:
                return None
            if current != version:
                raise UserError(_sentence(self.place, now))
        return version

    def _renew(self) -> None:
        held = time.monotonic()  # when it was last renewed
        while not self._ended.wait(self.renew_s):
            self.count += 1
            asked = time.monotonic()
            try:
                version = self._replace(self.version)
            except Exception:  # the store may come back, for as long as nobody else can take over
                if time.monotonic() - held < self.expires_s / 2:
                    continue
                version = None
            else:
                held = asked
            if version is None:
                self.version = None
                self.on_loss(
                    f"the run {self.place!r} was taken over by another job, or its lease could not be renewed"
                )
                return
            self.version = version

    def _replace(self, version: str | None) -> str | None:
        """Write what holds now over `version`; the new version, or None where another's stands there.

        Ours may stand there too: a store's answer is lost, and the same write, tried again, meets the first.
        """
        written = self.file.replace(self._content(), version)
        if written is None:
            found, current = self.file.read()
            written = current if found and found.get("id") == self.holder["id"] else None
        return written

    def _content(self) -> bytes:
        return json.dumps(self.holder | {"count": self.count}).encode()


def _sentence(place: str, found: dict[str, Any] | None) -> str:
    return f"{who(found)} is at work on the run {place!r}; wait for it, stop it, or give another run.id"


class _Local:
    """A file that changes under its own lock."""

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self) -> tuple[dict[str, Any] | None, str | None]:
        try:
            with self._open(os.O_RDONLY, "rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_SH)
                return parsed(stream.read(MAX_BYTES))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # writing there says what is wrong
                return None, None
            raise

    def replace(self, content: bytes, version: str | None) -> str | None:
        """Write `content` if what is there is `version`; the new version, or None where something else is there."""
        with storage.translate_errors(f"cannot write to {os.path.dirname(self.path)!r}"):
            return self._replace(content, version)

    def _replace(self, content: bytes, version: str | None) -> str | None:
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        while True:
            with self._open(os.O_RDWR | os.O_CREAT, "r+b") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                try:
                    if not os.path.samestat(os.fstat(stream.fileno()), os.stat(self.path)):
                        continue  # it was deleted, and made anew, before its lock was ours
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
        """Of a link nothing is opened: the file behind it would be written over."""
        return cast(BinaryIO, open(os.open(self.path, flags | os.O_NOFOLLOW, 0o644), mode))

    def delete(self, version: str) -> None:
        with suppress(FileNotFoundError), self._open(os.O_RDONLY, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            if parsed(stream.read(MAX_BYTES))[1] == version:
                os.unlink(self.path)
        with suppress(OSError):  # a job that was refused leaves no empty directory
            os.rmdir(os.path.dirname(self.path))


class _NoConditions(Exception):
    """The store does not write conditionally."""


class _S3:
    """An object that changes by conditional writes."""

    def __init__(self, place: str) -> None:
        import boto3

        bucket, _, key = place.removeprefix("s3://").partition("/")
        # Answers must come well before the lease expires.
        patience = Config(connect_timeout=5, read_timeout=5, retries={"total_max_attempts": 2})
        self.client, self.object = boto3.client("s3", config=patience), {"Bucket": bucket, "Key": key}
        self.place = place

    def read(self) -> tuple[dict[str, Any] | None, str | None]:
        answer = self._ask("get_object")
        return (parsed(answer["Content"])[0], answer["ETag"]) if answer else (None, None)

    def replace(self, content: bytes, version: str | None) -> str | None:
        condition = {"IfMatch": version} if version else {"IfNoneMatch": "*"}
        try:
            answer = self._ask("put_object", Body=content, **condition)
        except _NoConditions:  # a store without conditional writes: the best that it allows
            answer = self._ask("put_object", Body=content) if self.read()[1] == version else None
        return str(answer["ETag"]) if answer else None

    def delete(self, version: str) -> None:
        if self.read()[1] == version:
            self._ask("delete_object")

    def _ask(self, name: str, **options: Any) -> dict[str, Any] | None:
        """The store's answer; None where there is no such object, or another one than was expected."""
        try:
            try:
                return self._answer(name, options)
            except (IncompleteReadError, ResponseStreamingError, HTTPError):  # of a body, for which it asks but once
                return self._answer(name, options)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = error.response.get("Error", {}).get("Code", "")
            if code == "NoSuchKey" or status in (409, 412):
                return None
            if status == 501:
                raise _NoConditions from error
            sentence = f"cannot reach {self.place!r}: {code or status}"
            if status in (400, 401, 403, 404):
                raise UserError(sentence) from error
            raise TransientError(f"{sentence}; try again later") from None
        except SSLError as error:
            raise UserError(f"cannot reach {self.place!r}: {error}{s3_filesystem.AUTHORITY}") from None
        except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
            raise UserError(f"cannot reach {self.place!r}: {error}") from error
        except (BotoCoreError, HTTPError) as error:
            raise TransientError(f"cannot reach {self.place!r}: {error}; try again later") from None

    def _answer(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = getattr(self.client, name)(**self.object, **options)
        if "Body" in answer:
            answer["Content"] = answer["Body"].read(MAX_BYTES)
        return answer


def held(place: str, on_loss: Callable[[str], None]) -> AbstractContextManager:
    """The lease of a run directory; nothing on stores that have neither locks nor conditional writes."""
    return Lease(place, on_loss) if is_possible(place) else nullcontext()


def is_possible(place: str) -> bool:
    return place.startswith("s3://") or storage.is_local(place)


def _file(place: str) -> "_Local | _S3":
    return _S3(place) if place.startswith("s3://") else _Local(storage.resolve(place)[1])
