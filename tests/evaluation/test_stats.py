from math import nan, sqrt

import pytest

from rgtg.evaluation.stats import Mean, mean


def test_the_error_is_that_of_the_mean():
    assert mean([1.0, 2.0, 3.0, 6.0]) == pytest.approx(Mean(3.0, sqrt(14 / 3 / 4), 4))
    assert mean([2.0]) == Mean(2.0, 0.0, 1)
    assert mean([1.0, nan, 3.0]) == Mean(2.0, 1.0, 2)
    assert mean([]) is None
