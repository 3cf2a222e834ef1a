"""The endpoint judge against a local server that speaks the chat completions API."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rgtg.errors import Unavailable, UserError
from rgtg.evaluation.endpoint import Endpoint


class Judge(BaseHTTPRequestHandler):
    """Prefers the text with more `good`; of equal ones always A. It fails as often as `failures` says, first."""

    failures: list[int]
    asked: list[dict]
    answer = None

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.failures:
            self._reply(self.failures.pop(), {"error": "busy"})
            return
        self.asked.append({"path": self.path, "key": self.headers["Authorization"], **body})
        first, second = re.search(
            r"Text A:\n(.*)\n\nText B:\n(.*)\n\nAnswer", body["messages"][0]["content"], re.S
        ).groups()
        letter = "B" if second.count("good") > first.count("good") else "A"
        self._reply(200, {"choices": [{"message": {"content": self.answer or f"I prefer {letter}"}}]})

    def _reply(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
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
    assert wins == [1.0, 0.0, 0.5, 0.5]
    assert len(handler.asked) == 6, "equal texts are not asked about"
    assert {a["path"] for a in handler.asked} == {"/v1/chat/completions"}
    assert {a["model"] for a in handler.asked} == {"some-model"}
    assert {a["key"] for a in handler.asked} == {"Bearer planted"}


def test_throttling_is_tried_again(served):
    handler, endpoint = served
    handler.failures[:] = [503]
    assert endpoint.wins([[{"role": "user", "content": "hi"}]], ["good"], ["bad"]) == [1.0]
    assert "user: hi" in handler.asked[0]["messages"][0]["content"]


def test_an_answer_that_is_no_letter_counts_for_neither(served):
    handler, endpoint = served
    handler.answer = "A is no better than B."
    assert endpoint.wins(["p"], ["good"], ["bad"]) == [0.5]
    handler.answer = "They are both fine."
    assert endpoint.wins(["p"], ["good"], ["bad"]) == [0.5]


def test_a_refusal_is_one_sentence_without_the_key(served):
    handler, endpoint = served
    handler.failures[:] = [401]
    with pytest.raises(UserError, match="refuses \\(401\\)") as error:
        endpoint.wins(["p"], ["good"], ["bad"])
    assert "planted" not in str(error.value)


def test_nobody_there(served):
    _, endpoint = served
    nowhere = Endpoint("http://127.0.0.1:9/v1", "m", "JUDGE_KEY", 0)
    with pytest.raises(Unavailable, match="does not answer"):
        nowhere.wins(["p"], ["a"], ["b"])
