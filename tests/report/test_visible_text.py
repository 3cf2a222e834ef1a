"""No text of unknown origin is markup, moves other text or hides in it."""

import html
import re

import pytest

from rgtg.report.visible_text import plain, unicode_only, visible

HOSTILE = (
    "</script><script>alert(1)</script> & \"quoted\" 'too' \u202etext\u2066 \0\x1b[31m \ud800x \u200b\ufeff\t\r\n"
)


@pytest.mark.parametrize("show", [visible, lambda text: html.escape(plain(text))])
def test_nothing_hostile_is_left(show):
    shown = str(show(HOSTILE))
    assert "<script" not in shown
    assert "</script" not in shown
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\ufeff\0\x1b\ud800-\udfff]", shown)
    assert all(name in shown for name in ("U+202E", "U+2066", "U+0000", "U+001B", "U+200B", "U+FEFF", "U+000D"))
    shown.encode()


def test_white_space_is_marked_and_stays_what_it_is():
    shown = visible("a b\n\tc")
    assert re.sub("<[^>]*>|[↵→]", "", shown) == "a b\n\tc"
    assert "↵" in shown
    assert "→" in shown
    assert shown.count("<i> </i>") == 1


@pytest.mark.parametrize("text", ["plain", "日本語", "שלום", "naïve", "👩‍👩‍👧", "می‌خواهم"])
def test_ordinary_text_is_unchanged(text):
    assert visible(text) == plain(text) == unicode_only(text) == text


def test_a_lone_surrogate_is_one_replacement():
    assert unicode_only("a\ud83db\udc00") == "a\ufffdb\ufffd"
