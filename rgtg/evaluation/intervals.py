"""Figures with their 95 % bounds. Completions of one prompt are not independent: prompts are what is counted."""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np

Z = 1.96  # standard errors on either side of a figure


class Figure(NamedTuple):
    """A figure, its 95 % bounds, and the number of independent cases (prompts or pairs) behind it."""

    value: float
    low: float
    high: float
    n: int


def share(successes: float, n: int) -> Figure | None:
    """A share of `n` independent cases, between Wilson's bounds, which hold for few cases and extreme shares too."""
    if not n:
        return None
    p, z2 = successes / n, Z * Z
    center, width = p + z2 / (2 * n), Z * sqrt(max(0.0, p * (1 - p)) / n + z2 / (4 * n * n))
    return Figure(p, max(0.0, (center - width) / (1 + z2 / n)), min(1.0, (center + width) / (1 + z2 / n)), n)


def mean(values: Sequence[float] | np.ndarray) -> Figure | None:
    """A mean of independent values. The bounds of a single one are not known: they are infinite."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return None
    error = float(array.std(ddof=1)) / sqrt(len(array)) if len(array) > 1 else np.inf
    value = float(array.mean())
    return Figure(value, value - Z * error, value + Z * error, len(array))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Figure | None:
    """The ratio of two sums over prompts; its error is that of a ratio estimator with prompts as clusters."""
    a, b = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    total = float(b.sum())
    if not total:
        return None
    value = float(a.sum()) / total
    error = sqrt(float(((a - value * b) ** 2).sum())) / total if len(a) > 1 else np.inf
    return Figure(value, value - Z * error, value + Z * error, int((b > 0).sum()))


def correlation(moments: np.ndarray) -> Figure | None:
    """The correlation within prompts, of `moments` (prompts, 3): each prompt's sums of xy, xx and yy about its means.

    The error is the infinitesimal jackknife's, over prompts.
    """
    if not len(moments):
        return None
    xy, xx, yy = moments.sum(0)
    scale = sqrt(xx * yy)
    if not scale:
        return None
    value = float(xy / scale)
    influence = moments[:, 0] / scale - value / 2 * (moments[:, 1] / xx + moments[:, 2] / yy)
    error = sqrt(float((influence**2).sum()))
    return Figure(value, max(-1.0, value - Z * error), min(1.0, value + Z * error), len(moments))


def population_stability(before: np.ndarray, now: np.ndarray, bins: int = 10) -> Figure | None:
    """The population stability index of two samples, over bins with equal parts of `before`.

    Of two samples of one distribution the index is (bins - 1) (1/n + 1/m) in the mean, which is taken off; the bounds
    are those of a noncentral chi-square.
    """
    if not len(before) or not len(now):
        return None
    edges = np.unique(np.quantile(before, np.linspace(0, 1, bins + 1)[1:-1]))
    counts = [np.bincount(np.searchsorted(edges, x, side="right"), minlength=len(edges) + 1) for x in (before, now)]
    p, q = ((count + 0.5) / (count.sum() + 0.5 * len(count)) for count in counts)  # no empty bin
    noise = 1 / len(before) + 1 / len(now)
    value = max(0.0, float(((q - p) * np.log(q / p)).sum()) - len(edges) * noise)
    error = sqrt(2 * len(edges) * noise**2 + 4 * value * noise)
    return Figure(value, max(0.0, value - Z * error), value + Z * error, min(len(before), len(now)))
