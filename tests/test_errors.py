"""A sentence is one line that every terminal takes, whatever names are in it."""

import pytest

from rgtg.errors import UserError


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
    assert str(UserError(given)) == said
    str(UserError(given)).encode()
