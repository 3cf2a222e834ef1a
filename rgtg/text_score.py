"""The score of a text: one number, made of the rewards of all its prefixes. Whole texts are ranked by it.

The last reward alone is a noisy judge of a text where a reward model was trained on prefixes: what its last tokens say
outweighs all that came before. Which way is best is a property of the data, so held-out pairs decide (`train-reward`).
"""

import re
from collections.abc import Sequence
from math import fsum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a config names the ways before torch is loaded
    from torch import Tensor

FINAL = "final"

# The ways that training compares on held-out pairs.
WAYS = (FINAL, "mean", "linear", "last-8")

# Of those that held-out pairs do not tell apart the first one is kept: measured on the sandbox, where `linear` makes
# .950 of a night's pairs right and `last-8`, ahead by a half of a standard error on the held-out ones, .920.
STEADIEST = ("linear", "mean", "last-8", FINAL)


def check_way(way: str) -> str:
    """`way` itself: `final`, `mean`, `linear`, or `last-n` for a number n. Raises ValueError for another one."""
    if isinstance(way, str) and (way in (FINAL, "mean", "linear") or _last(way)):
        return way
    raise ValueError(f"the score {way!r} is unknown; there are final, mean, linear, and last-8 or another number")


def score(rewards: Sequence[float], way: str) -> float:
    """The score of a text of the rewards r(x, y[:i]), i = 1..n, of its prefixes, n >= 1.

    `final` is the last of them, `mean` their mean, `linear` their mean weighted by i, `last-n` the mean of the last n.
    """
    if way == FINAL:
        return rewards[-1]
    if way == "linear":
        n = len(rewards)
        return fsum(i * reward for i, reward in enumerate(rewards, 1)) / (n * (n + 1) / 2)
    kept = rewards[-last:] if (last := _last(way)) else rewards
    return fsum(kept) / len(kept)


def prefix_scores(rewards: "Tensor", way: str) -> "Tensor":
    """Scores (B, T) in float64 of every prefix, taken as a text, of the rewards (B, T) of all prefixes."""
    rewards = rewards.double()
    if way == FINAL:
        return rewards
    position = rewards.new_ones(rewards.shape[1]).cumsum(-1)
    if way == "linear":
        return (rewards * position).cumsum(-1) / position.cumsum(-1)
    totals = rewards.cumsum(-1)
    if last := _last(way):
        before = totals.new_zeros(totals.shape)
        before[:, last:] = totals[:, :-last]
        totals, position = totals - before, position.clamp(max=last)
    return totals / position


def _last(way: str) -> int | None:
    found = re.fullmatch(r"last-([1-9][0-9]{0,5})", way)
    return int(found[1]) if found else None
