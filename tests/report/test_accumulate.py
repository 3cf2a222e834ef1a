"""Figures of columns in parts are those of the whole columns."""

import numpy as np
import pytest

from rgtg.evaluation.stats import mean
from rgtg.report.accumulate import Moments, Reservoir, Within, histogram, rank_correlation


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("level", [0.0, 1e8])
def test_moments_in_parts_are_those_of_the_whole(random, level):
    values = level + random.normal(size=1000)
    values[::7] = np.nan
    moments = Moments()
    for part in np.array_split(values, 13):
        moments.add(part)
    assert moments.mean() == pytest.approx(mean(values), rel=1e-6)
    assert Moments().mean() is None


def test_the_correlation_within_groups_does_not_see_the_groups(random):
    group = np.repeat(np.arange(50), 4)
    x = random.normal(size=200)
    y = 0.5 * x + random.normal(size=200)
    within = Within()
    for start in range(0, 200, 40):
        part = slice(start, start + 40)
        level = 100.0 * group[part]
        within.add(x[part] + level, y[part] - level, group[part] - group[start])
    dx, dy = (v - np.repeat(v.reshape(50, 4).mean(1), 4) for v in (x, y))
    assert within.correlation() == pytest.approx(np.corrcoef(dx, dy)[0, 1])
    assert Within().correlation() is None


def test_a_reservoir_is_everything_until_it_is_full_and_then_a_fair_sample():
    small, large = Reservoir(100, 2), Reservoir(1000, 1)
    small.add(np.arange(5), np.arange(5) ** 2)
    assert sorted(small.rows.tolist()) == [[i, i * i] for i in range(5)]
    for start in range(0, 100_000, 777):
        large.add(np.arange(start, min(start + 777, 100_000)))
    assert large.rows.shape == (1000, 1)
    assert large.n == 100_000
    assert abs(large.rows.mean() - 50_000) < 4 * 100_000 / np.sqrt(12 * 1000)


def test_a_reservoir_does_not_depend_on_how_rows_are_divided():
    found = []
    for size in (10, 333, 5000):
        reservoir = Reservoir(50, 1)
        for start in range(0, 5000, size):
            reservoir.add(np.arange(start, min(start + size, 5000)))
        found.append(sorted(reservoir.rows[:, 0]))
    assert found[0] == found[1] == found[2]


def test_a_histogram_counts_every_value_once(random):
    values = {"a": random.normal(size=500), "b": np.append(random.normal(size=20_000), [1e9, np.nan])}
    made = histogram(values, 20_502)
    assert {name: sum(counts) for name, counts in made.counts.items()} == {"a": 500, "b": 20_001}
    assert made.edges[-1] < 10, "an outlier does not hide the others"
    assert 1 <= made.beyond <= 30
    assert len(made.edges) == len(made.counts["a"]) + 1


def test_whole_numbers_have_bars_of_whole_numbers():
    made = histogram({"tokens": np.repeat([3.0, 4.0, 7.0], [2, 1, 5])}, 8)
    assert made.edges == [2.5, 3.5, 4.5, 5.5, 6.5, 7.5]
    assert made.counts == {"tokens": [2, 1, 0, 0, 5]}
    wide = histogram({"tokens": np.arange(1.0, 101)}, 100)
    assert set(np.diff(wide.edges)) == {3.0}
    assert sum(wide.counts["tokens"]) == 100
    assert wide.beyond == 0


def test_one_value_and_none():
    assert sum(histogram({"a": np.array([0.5, 0.5])}, 2).counts["a"]) == 2
    assert histogram({"a": np.array([np.nan]), "b": np.empty(0)}, 0) is None


def test_rank_correlation_shares_ranks():
    assert rank_correlation(np.array([1, 2, 3, 4]), np.array([1, 8, 27, 64])) == pytest.approx(1)
    assert rank_correlation(np.array([1, 1, 2]), np.array([5, 5, 5])) is None
    # By hand: ranks 1.5, 1.5, 3, 4 against 2, 1, 3, 4.
    assert rank_correlation(np.array([0, 0, 1, 2]), np.array([2, 1, 3, 4])) == pytest.approx(0.9486833)
