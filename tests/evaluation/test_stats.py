from math import nan, sqrt

import pytest

from rgtg.evaluation.stats import Mean, gain, mean


def test_the_error_is_that_of_the_mean():
    assert mean([1.0, 2.0, 3.0, 6.0]) == pytest.approx(Mean(3.0, sqrt(14 / 3 / 4), 4))
    assert mean([2.0]) == Mean(2.0, 0.0, 1)
    assert mean([1.0, nan, 3.0]) == Mean(2.0, 1.0, 2)
    assert mean([]) is None


def test_a_gain_is_paired_by_prompt():
    """What every prompt adds to both sides cancels, however much it is."""
    second = {"a": 0.0, "b": 100.0, "c": -50.0}
    first = {prompt: value + step for (prompt, value), step in zip(second.items(), (1.0, 2.0, 3.0), strict=True)}
    assert gain(first | {"d": 1000.0}, second) == pytest.approx(Mean(2.0, 1 / sqrt(3), 3))
    assert gain({"x": 1.0}, second) is None
