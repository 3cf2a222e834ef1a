"""Texts of unknown origin as HTML in which nothing is hidden: markup, white space, control and bidi characters."""

import re

from markupsafe import Markup, escape

SPACE = "<i> </i>"  # a real one, for copies, with a dot that the style sheet draws
NEWLINE = '<i class="n">↵</i>\n'
TAB = '<i class="n">→</i>\t'

_SURROGATES = re.compile("[\ud800-\udfff]")
# Left to a browser, these would change how other text looks, or would not be seen at all. The joiners U+200C and
# U+200D stay: scripts and emoji are written with them.
_HIDDEN = (
    r"[^\S \n]|[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_NAMED = re.compile(_HIDDEN)
_MARKED = re.compile(rf"[ \n]|{_HIDDEN}")


def visible(text: str) -> Markup:
    """`text` for an element that keeps white space: without markup of its own, and hidden characters by name."""
    return Markup(_MARKED.sub(lambda found: _mark(found[0]), str(escape(unicode_only(text)))))


def plain(text: str) -> str:
    """`text` for where no markup can be, hidden characters by name; still to be escaped."""
    return _NAMED.sub(lambda found: _name(found[0]), unicode_only(text))


def unicode_only(text: str) -> str:
    """`text` with U+FFFD for lone surrogates, which no file can hold."""
    return _SURROGATES.sub("\ufffd", text)


def _mark(character: str) -> str:
    return {" ": SPACE, "\n": NEWLINE, "\t": TAB}.get(character) or f'<i class="c">{_name(character)}</i>'


def _name(character: str) -> str:
    return f"U+{ord(character):04X}"
