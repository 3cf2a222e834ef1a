"""The endpoint judge against a local server that speaks the chat completions API."""

import gzip
import json
import re
import ssl
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from rgtg import endpoint as rules
from rgtg.endpoint import Endpoint
from rgtg.errors import TransientError, UserError


class Judge(BaseHTTPRequestHandler):
    """Prefers the text with more `good`; of equal ones always A. It fails as often as `failures` says, first."""

    failures: list[int]
    asked: list[dict]
    answer = None
    raw = None  # gives the bytes of a whole response
    also: dict[str, str] = {}  # more headers

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.failures:
            self._reply(self.failures.pop(), {"error": f"busy, {self.headers['Authorization']}"})
            return
        if self.raw:
            self.wfile.write(self.raw())
            return
        self.asked.append({"path": self.path, "key": self.headers["Authorization"], **body})
        first, second = re.search(
            r"Text A:\n(.*)\n\nText B:\n(.*)\n\nAnswer", body["messages"][0]["content"], re.S
        ).groups()
        letter = "B" if second.count("good") > first.count("good") else "A"
        self._reply(200, {"choices": [{"message": {"content": self.answer or letter}}]})

    def _reply(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in self.also.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args): ...


@pytest.fixture
def served(monkeypatch):
    handler = type("Handler", (Judge,), {"failures": [], "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("JUDGE_KEY", "planted")
    yield handler, Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "some-model", "JUDGE_KEY", 0)
    server.shutdown()
    server.server_close()


def test_both_sides_are_asked_and_a_verdict_of_place_alone_is_a_tie(served):
    handler, endpoint = served
    wins = endpoint.wins(
        ["p", "q", "r", "s"], ["good good", "bad", "same place", "equal"], ["bad", "good", "tie", "equal"]
    )
    assert wins == ([1.0, 0.0, 0.5, 0.5], 6, 0)
    assert len(handler.asked) == 6, "equal texts are not asked about"
    assert {a["path"] for a in handler.asked} == {"/v1/chat/completions"}
    assert {a["model"] for a in handler.asked} == {"some-model"}
    assert {a["key"] for a in handler.asked} == {"Bearer planted"}


def test_throttling_is_tried_again(served):
    handler, endpoint = served
    handler.failures[:] = [503]
    assert endpoint.wins([[{"role": "user", "content": "hi"}]], ["good"], ["bad"]).scores == [1.0]
    assert "user: hi" in handler.asked[0]["messages"][0]["content"]


@pytest.mark.parametrize(
    "answer",
    [
        *("A is no better than B.", "They are both fine.", "A good text; the other has no point.", "A\nor maybe not"),
        *(7, [None], [{"image": 1}, "A"]),
    ],
)
def test_verdicts_that_cannot_be_read_are_counted(served, answer, monkeypatch, caplog):
    caplog.set_level("INFO", logger="rgtg")
    handler, endpoint = served
    handler.answer = answer
    with pytest.raises(UserError, match="2 of 2 verdicts that are neither A nor B"):
        endpoint.wins(["p"], ["good"], ["bad"])
    monkeypatch.setattr(rules, "MAX_UNREADABLE", 1.0)
    assert endpoint.wins(["p"], ["good"], ["bad"]) == ([0.5], 2, 2)
    assert "2 of 2 verdicts are neither" in caplog.text


def test_an_answer_in_parts(served):
    handler, endpoint = served
    handler.answer = [{"type": "text", "text": "Answer:"}, {"type": "text", "text": " A"}]
    assert endpoint.wins(["p"], ["good"], ["bad"]) == ([0.5], 2, 0)


@pytest.mark.parametrize(
    "answer", ["B", " b.".upper(), "**B**", '"B"', "Text B", "Verdict: B.", "A is fine, but short.\n\nB"]
)
def test_verdicts_as_models_write_them(served, answer):
    handler, endpoint = served
    handler.answer = answer
    assert endpoint.wins(["p"], ["good"], ["bad"]) == ([0.5], 2, 0)


@pytest.mark.parametrize("status", [400, 401, 403, 422])
def test_a_refusal_is_one_sentence_without_the_key(served, status):
    """The server echoes the request's headers."""
    handler, endpoint = served
    handler.failures[:] = [status] * 100
    with pytest.raises(UserError, match=f"refuses \\({status}\\)") as error:
        endpoint.wins(["p"] * 50, ["good"] * 50, ["bad"] * 50)
    assert "planted" not in str(error.value)
    assert len(handler.failures) > 50, "after a refusal nothing more is asked"


def test_a_long_pause_is_cut_and_said(served, monkeypatch, caplog):
    caplog.set_level("INFO", logger="rgtg")
    handler, endpoint = served
    pauses: list[float] = []
    waits = rules.wait

    def wait(futures, timeout=None, **options):
        pauses.append(timeout) if timeout in (0, rules.LONGEST_PAUSE_S) else None
        return waits(futures, 0 if timeout == rules.LONGEST_PAUSE_S else timeout, **options)

    monkeypatch.setattr(rules, "wait", wait)
    handler.failures[:], handler.also = [429], {"Retry-After": "100000"}
    assert endpoint.wins(["p"], ["good"], ["bad"]).scores == [1.0]
    assert pauses == [rules.LONGEST_PAUSE_S]
    assert "asks for 100,000 s and gets 60 s" in caplog.text


def test_no_redirect_is_followed(served):
    handler, endpoint = served
    handler.failures[:], handler.also = [302] * 2, {"Location": "http://127.0.0.1:9/?key=planted"}
    with pytest.raises(UserError, match="has moved \\(302\\)") as error:
        endpoint.wins(["p"], ["good"], ["bad"])
    assert "planted" not in str(error.value)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"choices": ' + b"[" * 100_000,
        b"null",
        b"\xff\xfe",
        b"x" * (rules.MAX_BYTES + (1 << 20)),
        b'{"choices": [{"message": null}]}',
    ],
    ids=["brackets", "nested", "null", "bytes", "long", "no message"],
)
def test_what_is_no_answer(served, body):
    handler, endpoint = served
    handler.raw = lambda self: b"HTTP/1.0 200 OK\r\n\r\n" + body
    with pytest.raises(UserError, match="does not speak the chat completions API"):
        endpoint.wins(["p"], ["good"], ["bad"])


def test_an_answer_that_drips_ends_at_the_deadline(served, monkeypatch):
    """A socket's timeout begins anew at every byte, of the headers too."""
    handler, endpoint = served
    ended = threading.Event()

    def drip(self):
        self.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
        while not ended.wait(0.05):
            self.wfile.write(b"x")
        return b""

    handler.raw = drip
    monkeypatch.setattr(rules, "DEADLINE_S", 0.5)
    monkeypatch.setattr(rules, "ATTEMPTS", 1)
    try:
        with pytest.raises(TransientError, match="does not answer: TimeoutError"):
            endpoint.wins(["p"], ["good"], ["bad"])
    finally:
        ended.set()


def test_nobody_waits_for_what_else_was_asked(served):
    """One question is refused while another gets no answer: as a signal does, that ends the asking."""
    handler, endpoint = served
    ended, answered = threading.Event(), []

    def refuse_all_but_the_first(self):
        if not handler.asked:
            handler.asked.append({})
            ended.wait(10)
            answered.append(1)
        self._reply(400, {})
        return b""

    handler.raw = refuse_all_but_the_first
    with pytest.raises(UserError, match="refuses \\(400\\)"):
        endpoint.wins(["p"] * 50, ["good"] * 50, ["bad"] * 50)
    assert not answered
    ended.set()


@pytest.mark.parametrize("size", [1 << 20, 64 << 20], ids=["short", "long"])
def test_a_packed_answer_is_not_unpacked(served, size, monkeypatch):
    """A thousand times as long as what is sent."""
    handler, endpoint = served
    packed = gzip.compress(b'{"choices": "' + b"x" * size, 9) * (100 if size > 1 << 20 else 1)

    def refuse(*_):
        raise AssertionError("unpacked")

    monkeypatch.setattr("urllib3.response.GzipDecoder.decompress", refuse)
    handler.raw = lambda self: (
        b"HTTP/1.0 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed
    )
    with pytest.raises(UserError, match="does not speak the chat completions API"):
        endpoint.wins(["p"], ["good"], ["bad"])


@pytest.mark.parametrize("key", ["", "planted"])
def test_a_judge_gets_no_credentials_of_a_netrc(served, tmp_path, monkeypatch, key):
    handler, endpoint = served
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password a-secret-of-the-test\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("JUDGE_KEY", key)
    endpoint.wins(["p"], ["good"], ["bad"])
    assert {asked["key"] for asked in handler.asked} == {f"Bearer {key}" if key else None}


@pytest.mark.parametrize(
    ("url", "key", "warns"),
    [
        ("http://judge.example/v1", "planted", True),
        ("HTTP://judge.example:8000", "planted", True),
        ("http://judge.example/v1", "", False),
        ("https://judge.example/v1", "planted", False),
        ("http://localhost:8000/v1", "planted", False),
        ("http://[::1]/v1", "planted", False),
    ],
)
def test_a_key_that_goes_unencrypted_is_said(monkeypatch, caplog, url, key, warns):
    caplog.set_level("INFO", logger="rgtg")
    monkeypatch.setenv("JUDGE_KEY", key)
    Endpoint(url, "m", "JUDGE_KEY").ask([])
    said = caplog.text
    assert ("unencrypted; use https://" in said) == warns
    assert "planted" not in said


def test_a_certificate_of_an_unknown_authority_is_one_sentence(served, tmp_path):
    """And the key is not sent."""
    handler, endpoint = served
    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"https://127.0.0.1:{server.server_port}/v1"
        with pytest.raises(UserError, match="SSLError; name its authority in REQUESTS_CA_BUNDLE"):
            Endpoint(url, "m", "JUDGE_KEY", 0).wins(["p"], ["good"], ["bad"])
        server.shutdown()
    assert not handler.asked


def self_signed(directory):
    """A file with a key and a certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "both.pem").write_bytes(plain + certificate.public_bytes(Encoding.PEM))
    return directory / "both.pem"


@pytest.mark.parametrize("key", ["planted\nX-Evil: 1", "plan ted", "plantéd"])
def test_a_key_that_no_header_can_hold(served, monkeypatch, key):
    _, endpoint = served
    monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(UserError, match="the key in JUDGE_KEY has") as error:
        endpoint.wins(["p"], ["good"], ["bad"])
    assert "plan" not in str(error.value)


def test_no_key_and_lone_surrogates(served, monkeypatch):
    handler, endpoint = served
    monkeypatch.setenv("JUDGE_KEY", "")
    assert endpoint.wins(["\ud800"], ["good"], ["\udfff"]).scores == [1.0]
    assert handler.asked[0]["key"] is None


def test_an_answer_that_breaks_off_is_asked_for_again(served):
    handler, endpoint = served
    handler.raw = lambda self: b'HTTP/1.0 200 OK\r\nContent-Length: 999\r\n\r\n{"choices"'
    with pytest.raises(TransientError, match="does not answer"):
        endpoint.wins(["p"], ["good"], ["bad"])


def test_nobody_there(served):
    _, endpoint = served
    nowhere = Endpoint("http://127.0.0.1:9/v1", "m", "JUDGE_KEY", 0)
    with pytest.raises(TransientError, match="does not answer"):
        nowhere.wins(["p"], ["a"], ["b"])
