"""The protocol of a lease: take it, renew it from a thread, notice its loss, give it back."""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Protocol

from rgtg import storage
from rgtg.errors import UserError
from rgtg.lease.holder import is_dead, started, who
from rgtg.lease.local_file import LocalFile
from rgtg.lease.s3_object import S3Object

logger = logging.getLogger(__name__)

NAME = "_lease.json"
RENEW_S = 5.0
EXPIRES_S = 60.0  # many renewals, since a holder or its store may be slow


class LeaseFile(Protocol):
    """The file of a lease, wherever it is stored. A version identifies its content; None is that of no file."""

    def read(self) -> tuple[dict[str, Any] | None, str | None]:
        """The holder, as far as it can be read, and the version."""

    def replace(self, content: bytes, version: str | None) -> str | None:
        """Write `content` if the file has this version; the new version, or None where it has another."""

    def delete(self, version: str) -> None:
        """Delete the file if it has this version."""


class Lease:
    """A context manager around a job on `uri`. Entering it raises UserError where another job is running there.

    Where the lease is lost later (the machine slept, and another job took over), `on_loss` is called with a message,
    from a thread: the job must not write any more.
    """

    def __init__(
        self, uri: str, on_loss: Callable[[str], None], renew_s: float = RENEW_S, expires_s: float = EXPIRES_S
    ) -> None:
        self.uri, self.on_loss, self.renew_s, self.expires_s = uri, on_loss, renew_s, expires_s
        self.file = _file(storage.join(uri, NAME))
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
            raise UserError(_refusal(self.uri, self.file.read()[0]))
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        if self.version is not None:
            with suppress(Exception):  # a lease that stays only makes the next job wait
                self.file.delete(self.version)

    def _watch(self, found: dict[str, Any], version: str | None) -> str | None:
        """Wait until the lease has expired; the version that may be replaced then."""
        logger.info(f"waiting for at most {self.expires_s:.0f} s: {who(found)} may still write to {self.uri!r}")
        until = time.monotonic() + self.expires_s
        while time.monotonic() < until:
            self._ended.wait(min(1.0, self.renew_s))
            now, current = self.file.read()
            if current is None:
                return None
            if current != version:
                raise UserError(_refusal(self.uri, now))
        return version

    def _renew(self) -> None:
        held = time.monotonic()  # time of the last renewal
        while not self._ended.wait(self.renew_s):
            self.count += 1
            asked = time.monotonic()
            try:
                version = self._replace(self.version)
            except Exception:  # the store may come back before another job may take over
                if time.monotonic() - held < self.expires_s / 2:
                    continue
                version = None
            else:
                held = asked
            if version is None:
                self.version = None
                self.on_loss(f"the run {self.uri!r} was taken over by another job, or its lease could not be renewed")
                return
            self.version = version

    def _replace(self, version: str | None) -> str | None:
        """Replace `version` by our current content; the new version, or None where the lease is another job's.

        A refused write may still be ours: where the answer to it was lost, its retry meets the content it wrote.
        """
        written = self.file.replace(self._content(), version)
        if written is None:
            found, current = self.file.read()
            written = current if found and found.get("id") == self.holder["id"] else None
        return written

    def _content(self) -> bytes:
        return json.dumps(self.holder | {"count": self.count}).encode()


def _refusal(uri: str, found: dict[str, Any] | None) -> str:
    return f"{who(found)} is at work on the run {uri!r}; wait for it, stop it, or give another run.id"


def held(uri: str, on_loss: Callable[[str], None]) -> AbstractContextManager:
    """The lease of a run directory; a null context on stores with neither locks nor conditional writes."""
    return Lease(uri, on_loss) if is_possible(uri) else nullcontext()


def is_possible(uri: str) -> bool:
    return uri.startswith("s3://") or storage.is_local(uri)


def _file(uri: str) -> LeaseFile:
    return S3Object(uri) if uri.startswith("s3://") else LocalFile(storage.resolve(uri)[1])
