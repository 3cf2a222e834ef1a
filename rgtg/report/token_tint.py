"""Tokens of a completion as a reader sees them, each with what it adds to the reward. Pure."""

from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from math import isfinite
from typing import NamedTuple

Decode = Callable[[list[int]], str]

BROKEN = "\ufffd"  # what a decoder writes for bytes that are no character yet
MOST_MERGED = 4  # bytes of a character, each of which may be a token
CLIP = 0.98  # the quantile of |increment| at which the tint is full
STEPS = 5  # tints of either side


class Piece(NamedTuple):
    """Tokens that decode together. `increment` is what they add to the reward, `reward` that of the text up to their
    end; None where it is not known: nothing is known of the reward of a prompt alone.
    """

    text: str
    end: int  # tokens of the completion up to and with the last one of these
    increment: float | None
    reward: float | None
    shared: bool  # part of what both sides begin with


def decoded(ids: Sequence[int], decode: Decode) -> list[tuple[str, int]]:
    """The tokens merged until they decode: (text, number of tokens up to its end).

    Each text is what decoding of one token more adds, since a token's text depends on the one before it.
    """
    found: list[tuple[str, int]] = []
    start = read = 0  # of the tokens before, as many as are decoded again; of them, as many as are shown
    for end in range(1, len(ids) + 1):
        before, now = decode(list(ids[start:read])), decode(list(ids[start:end]))
        is_part = now.endswith(BROKEN) or len(now) <= len(before)
        if is_part and end - read < MOST_MERGED and end < len(ids):
            continue
        found.append((now[len(before) :], end))
        start, read = read, end
    return found


def tinted(
    ids: Sequence[int],
    rewards: Sequence[float | None] | None,
    decode: Decode,
    shared: int = 0,
    most: int | None = None,
) -> list[Piece]:
    """The pieces of the first `most` tokens; `rewards` are of the prefix that ends with each, `shared` how many tokens
    the other side begins with too. Without a reward for each token no increment is known.
    """
    known = [_finite(r) for r in rewards] if rewards is not None and len(rewards) == len(ids) else [None] * len(ids)
    pieces: list[Piece] = []
    before: float | None = None
    for text, end in decoded(ids[:most], decode):
        reward = known[end - 1]
        increment = None if reward is None or before is None else reward - before
        pieces.append(Piece(text, end, increment, reward, end <= shared))
        before = reward
    return pieces


def shared_beginning(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def full_tint(increments: Iterable[float | None]) -> float:
    """The |increment| from which on the tint is full: the 98th percentile of a page's; 0 where there is none."""
    sizes = sorted(abs(increment) for increment in increments if increment is not None)
    return sizes[min(len(sizes) - 1, int(CLIP * len(sizes)))] if sizes else 0.0


def tint(increment: float | None, full: float) -> int:
    """From -STEPS, lowers the reward most, to STEPS; 0 is no tint."""
    if increment is None or not full:
        return 0
    return round(STEPS * max(-1.0, min(1.0, increment / full)))


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
