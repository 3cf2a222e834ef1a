"""Means and shares with their standard errors."""

from collections.abc import Iterable
from math import isfinite, sqrt
from typing import NamedTuple


class Mean(NamedTuple):
    """A mean over `n` prompts with its standard error; completions of one prompt are not independent."""

    value: float
    error: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:+.3f} ± {self.error:.3f}"


def mean(values: Iterable[float]) -> Mean | None:
    """None where there are no values; the error of a single one is not known, and 0."""
    finite = [value for value in values if isfinite(value)]
    if not finite:
        return None
    center = sum(finite) / len(finite)
    variance = sum((value - center) ** 2 for value in finite) / max(1, len(finite) - 1)
    return Mean(center, sqrt(variance / len(finite)), len(finite))


def share_error(share: float, n: int) -> float:
    """The standard error of a share of `n` independent cases."""
    return sqrt(max(0.0, share * (1 - share)) / n) if n else 0.0


def better_than_chance(share: float, n: int) -> bool:
    """Whether a share of `n` pairs is above a half by two standard errors of guessing."""
    return share - 0.5 >= 2 * share_error(0.5, n)
