"""A sentence is one line that every terminal takes, without credentials, whatever names are in it."""

import pytest

from pipelines.runtime.launch import guarded
from rgtg.errors import TransientError, UserError, redacted


@pytest.mark.parametrize(
    "text",
    [
        "https://me:planted@host/x",
        "proxy http://me:planted@proxy:3128 refuses",
        "https://b.s3.amazonaws.com/k?X-Amz-Credential=planted&X-Amz-Signature=planted&X-Amz-Security-Token=planted",
        "GET /v1?api_key=planted&x=1",
        "{'Authorization': 'Bearer planted', 'x': 1}",
        "x-amz-security-token: planted",
        "the token is planted-in-the-environment.",
    ],
)
def test_credentials_are_left_out(text, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", "planted-in-the-environment")
    for said in (redacted(text), str(UserError(text)), str(TransientError(text))):
        assert "planted" not in said
        assert "***" in said
    for error in (UserError(text), OSError(text), RuntimeError(text), TransientError("x")):
        error.__cause__ = ValueError(text)

        def fail(error=error):
            raise error

        with pytest.raises(SystemExit):
            guarded(fail)
    captured = capfd.readouterr()
    assert "planted" not in captured.out + captured.err


@pytest.mark.parametrize(
    "text", ["hdfs://user@host/x", "owner/name@main", "s3://b/a@2", "the token 12 of a key=value", "abfs://c@a.net/x"]
)
def test_what_is_no_secret_stays(text):
    assert redacted(text) == text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("a\nb\u2028c", "a b c"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("a lone \ud800", r"a lone \ud800"),
        ("\u202eright to left", r"\u202eright to left"),
        ("é 🙂 日本", "é 🙂 日本"),
    ],
)
def test_a_sentence_is_one_printable_line(given, said):
    assert str(UserError(given)) == str(TransientError(given)) == said
    str(UserError(given)).encode()
