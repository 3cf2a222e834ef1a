"""How well the surface of two texts tells which is which: length, punctuation and the like, and no word of them.

Where the surface gives a side away, a policy can learn the surface in place of what the pairs were made to teach.
"""

from array import array

import numpy as np

from rgtg.evaluation import intervals
from rgtg.evaluation.intervals import Figure
from rgtg.preferences.selection import fraction

MOST = 20_000  # pairs of a probe
CHARACTERS = 5_000  # of a text that are read
RIDGE = 1e-3  # beside features of unit size


def features(text: str) -> list[float]:
    """Log length, and parts of characters or words that are of a kind."""
    read = text[:CHARACTERS]
    n, words = max(1, len(read)), read.split()
    return [
        float(np.log1p(len(text))),
        sum(map(len, words)) / max(1, len(words)) / 10,
        len(set(words)) / max(1, len(words)),
        *(sum(map(kind, read)) / n for kind in (str.isalpha, str.isupper, str.isdigit, str.isspace)),
        read.count("\n") / n,
        sum(read.count(c) for c in ".,;:!?") / n,
    ]


class Probe:
    """A linear discriminant on differences of features, fitted to one half of the pairs and tried on the other."""

    def __init__(self) -> None:
        self.halves = array("d"), array("d")  # of differences, one after the other

    def add(self, prompt_id: str, one: str, other: str) -> None:
        half = self.halves[fraction(f"probe/{prompt_id}") < 0.5]
        width = len(features(""))
        if len(half) < MOST // 2 * width:
            half.extend(a - b for a, b in zip(features(one), features(other), strict=True))

    def figure(self) -> Figure | None:
        """The part of the second half that the probe tells apart; .5 is guessing."""
        width = len(features(""))
        fitted, tried = (np.array(half).reshape(-1, width) for half in self.halves)
        if len(fitted) < 2 * width or not len(tried):
            return None
        scale = np.sqrt((fitted**2).mean(0)) + 1e-12  # features have all kinds of units
        fitted, tried = fitted / scale, tried / scale
        weights = np.linalg.solve(fitted.T @ fitted / len(fitted) + RIDGE * np.eye(width), fitted.mean(0))
        scores = tried @ weights
        return intervals.share(float((scores > 0).sum() + 0.5 * (scores == 0).sum()), len(tried))
