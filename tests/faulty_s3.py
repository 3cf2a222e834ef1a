"""An S3 endpoint that fails as stores and networks do: a proxy before a good one, which a plan tells when and how."""

import http.client
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

PAUSES = {"slow": 0.3, "silent": 60.0}  # seconds before the answer

ERRORS = {  # status, code, message
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503": (503, "SlowDown", "Please reduce your request rate."),
    # Amazon answers 400, others 403. A HEAD has no body, so that its status is all that is known.
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "expired-403": (403, "ExpiredToken", "The provided token has expired."),
}
# A second attempt overcomes these. `reset-answer` comes after the request was carried out, `reset-upload` before.
TRANSIENT = ("slow", "500", "503", "reset-answer", "reset-upload")

Plan = Callable[[int, str, str], str | None]  # the request's number (from 1), method and path: a fault, or none


def no_faults(number: int, method: str, path: str) -> None:
    return None


def always(fault: str) -> Plan:
    return lambda number, method, path: fault


def every(n: int, *faults: str) -> Plan:
    """Of the requests that ask the same, the first and every `n`-th after it fail, by one fault after the other.

    Were they counted together, requests of several threads could all be refused at each of their attempts.
    """
    seen: Counter[tuple[str, str]] = Counter()

    def plan(number: int, method: str, path: str) -> str | None:
        count = seen[method, path]
        seen[method, path] += 1
        return faults[count // n % len(faults)] if count % n == 0 else None

    return plan


def at_random(seed: int, rate: float, faults: tuple[str, ...] = TRANSIENT) -> Plan:
    """A part of the requests fails; which numbers, and how, is a function of the seed."""

    def plan(number: int, method: str, path: str) -> str | None:
        rng = random.Random(f"{seed}/{number}")
        return rng.choice(faults) if rng.random() < rate else None

    return plan


class FaultyS3(ThreadingHTTPServer):
    """A context manager; `plan` may change at any time, and begins to count requests anew then."""

    daemon_threads = True
    block_on_close = False  # clients keep their connections open

    def __init__(self, endpoint: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.backend = urlsplit(endpoint).netloc
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self.plan = no_faults

    @property
    def plan(self) -> Plan:
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        with self._lock:
            self._plan, self.requests, self.injected = plan, 0, Counter()

    def __enter__(self) -> "FaultyS3":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def fault(self, method: str, path: str) -> str | None:
        with self._lock:
            self.requests += 1
            fault = self._plan(self.requests, method, path)
            if fault:
                self.injected[fault] += 1
            return fault

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was reset, or went away, is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyS3

    def _answer(self) -> None:
        fault = self.server.fault(self.command, self.path)
        if fault == "reset-upload":
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            return self._reset()
        body = self._body()
        if fault in ERRORS:
            return self._refuse(*ERRORS[fault])
        if fault in PAUSES:
            self.server.closing.wait(PAUSES[fault])
        self._pass_on(body, cut=fault == "reset-answer")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers, such as checksums
            pass
        return body

    def _pass_on(self, body: bytes, cut: bool) -> None:
        """The good endpoint's answer; its beginning alone where it is to be `cut`."""
        backend = http.client.HTTPConnection(self.server.backend)
        # The host stays as the client signed it.
        backend.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "content-length", "expect", "transfer-encoding"):
                backend.putheader(name, value)
        backend.putheader("Content-Length", str(len(body)))
        backend.endheaders(body)
        answer = backend.getresponse()
        content = answer.read()
        backend.close()
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in _OF_A_CONNECTION}
        if self.command == "HEAD":  # which says how long the body would be
            headers["Content-Length"] = answer.getheader("Content-Length", "0")
        elif answer.status not in (204, 304):
            headers["Content-Length"] = str(len(content))
        self._send(answer.status, headers, content[: len(content) // 2] if cut else content)
        if cut:
            self._reset()

    def _refuse(self, status: int, code: str, message: str) -> None:
        content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self._send(status, {"Content-Type": "application/xml", "Content-Length": str(len(content))}, content)

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _reset(self) -> None:
        """End the connection by a reset, and not in good order: what is not sent yet is lost."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        for end in (self.rfile, self.wfile, self.connection):
            end.close()

    def log_message(self, *arguments: object) -> None: ...


_OF_A_CONNECTION = ("connection", "content-length", "date", "server", "transfer-encoding")
