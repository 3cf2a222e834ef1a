"""Figures of columns that come part by part and never lie in memory as a whole."""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from rgtg.evaluation.stats import Mean


@dataclass
class Moments:
    """Mean and standard error of all finite values that were added."""

    n: int = 0
    center: float = 0.0
    squares: float = 0.0  # of the deviations from `center`

    def add(self, values: np.ndarray) -> None:
        """`values`: (n,). By Chan's update, which loses no digits where the mean is large."""
        values = np.asarray(values, np.float64)
        values = values[np.isfinite(values)]
        if not len(values):
            return
        center, n = values.mean(), self.n + len(values)
        shift = center - self.center
        self.squares += float(((values - center) ** 2).sum() + shift**2 * self.n * len(values) / n)
        self.center += float(shift * len(values) / n)
        self.n = n

    def mean(self) -> Mean | None:
        if not self.n:
            return None
        return Mean(self.center, sqrt(self.squares / max(1, self.n - 1) / self.n), self.n)


@dataclass
class Within:
    """The correlation of two figures within groups, of their deviations from the group's mean."""

    xx: float = 0.0
    xy: float = 0.0
    yy: float = 0.0
    n: int = 0

    def add(self, x: np.ndarray, y: np.ndarray, group: np.ndarray) -> None:
        """`x`, `y`, `group`: (n,); a group, a number from 0, is whole in one call."""
        size = np.maximum(np.bincount(group), 1)
        dx = x - (np.bincount(group, x) / size)[group]
        dy = y - (np.bincount(group, y) / size)[group]
        self.xx, self.xy, self.yy = self.xx + float(dx @ dx), self.xy + float(dx @ dy), self.yy + float(dy @ dy)
        self.n += len(x)

    def correlation(self) -> float | None:
        return self.xy / sqrt(self.xx * self.yy) if self.xx and self.yy else None


class Reservoir:
    """A uniform sample of at most `size` rows, the same however the same rows are divided."""

    def __init__(self, size: int, columns: int, seed: int = 0) -> None:
        self.size, self.n = size, 0  # n: rows that were added
        self._random = np.random.default_rng(seed)
        self._kept = np.empty((0, 1 + columns))  # the key of a row, then the row
        self._new: list[np.ndarray] = []
        self._num_new = 0
        self._bar = np.inf  # no key from here on is among the smallest

    def add(self, *columns: np.ndarray) -> None:
        """Each of the columns: (n,). Rows are drawn by a random key of their own: the smallest keys are the sample."""
        keys = self._random.random(len(columns[0]))
        self.n += len(keys)
        near = keys < self._bar
        if near.any():
            self._new.append(np.stack([keys[near], *(column[near] for column in columns)], 1))
            self._num_new += len(self._new[-1])
        if self._num_new > self.size:  # seldom, since it sorts them all
            self._settle()

    @property
    def rows(self) -> np.ndarray:
        """(at most size, columns)"""
        self._settle()
        return self._kept[:, 1:]

    def _settle(self) -> None:
        every = np.concatenate([self._kept, *self._new])
        self._kept, self._new = every[np.argsort(every[:, 0])][: self.size], []
        self._num_new = 0
        if len(self._kept) == self.size:
            self._bar = self._kept[-1, 0]


@dataclass(frozen=True)
class Histogram:
    """Counts between equally spaced edges; what is beyond the first and the last one is counted at the end."""

    edges: list[float]  # (b + 1,)
    counts: dict[str, list[int]]  # of each series: (b,)
    beyond: int  # values outside the edges
    drawn: int  # values that are counted, a sample of
    total: int


BINS = 36  # at most
MANY = 10_000  # values, of which the edges leave out the outermost thousandth


def histogram(series: dict[str, np.ndarray], total: int) -> Histogram | None:
    """Of several series on the same edges; None without a finite value. Whole numbers have bars of whole numbers."""
    finite = {name: values[np.isfinite(values)] for name, values in series.items()}
    every = np.concatenate(list(finite.values()))
    if not len(every):
        return None
    low, high = np.quantile(every, [0.0005, 0.9995] if len(every) >= MANY else [0, 1])
    if (every == np.floor(every)).all():
        width = np.ceil((high - low + 1) / BINS)
        edges = np.arange(np.floor(low) - 0.5, high + 0.5 + width, width)
    else:
        edges = np.linspace(*((low, high) if low < high else (low - 0.5, high + 0.5)), BINS + 1)
    low, high = edges[0], edges[-1]
    counts = {name: np.histogram(np.clip(v, low, high), edges)[0].tolist() for name, v in finite.items() if len(v)}
    beyond = int(((every < low) | (every > high)).sum())
    return Histogram(edges.tolist(), counts, beyond, len(every), total)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Spearman's; None where either is constant."""
    a, b = _ranks(x), _ranks(y)
    if len(a) < 2 or not a.std() or not b.std():
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
