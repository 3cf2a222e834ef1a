import numpy as np
import pytest
from scipy.stats import chi2, norm, spearmanr

from rgtg.evaluation import intervals

REPEATS = 2000
# Of 2,000 intervals that hold with probability .95, fewer than this do once in ten thousand.
LEAST = 0.95 - 3.7 * (0.95 * 0.05 / REPEATS) ** 0.5


def part_that_hold(truth, figures):
    return np.mean([figure.low <= truth <= figure.high for figure in figures])


@pytest.mark.parametrize("n", [50, 500, 5000])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_the_bounds_of_a_share_hold(n, p):
    rng = np.random.default_rng(n)
    figures = [intervals.share(k, n) for k in rng.binomial(n, p, REPEATS)]
    # Wilson's interval holds in .95 of the cases in the mean over p; for one p counts are steps of 1/n.
    assert part_that_hold(p, figures) > LEAST - 0.02 * (n == 50)


@pytest.mark.parametrize("n", [50, 500])
def test_the_bounds_of_a_mean_and_of_a_ratio_hold(n):
    rng = np.random.default_rng(n)
    assert part_that_hold(1.0, [intervals.mean(rng.normal(1, 3, n)) for _ in range(REPEATS)]) > LEAST - 0.01
    ratios = []
    for _ in range(REPEATS):  # six comparisons a prompt, which are right together
        right = rng.beta(2, 1, n)
        ratios.append(intervals.ratio(6 * right, np.full(n, 6.0)))
    assert part_that_hold(2 / 3, ratios) > LEAST - 0.015


def test_a_ratio_with_dependent_comparisons_is_less_certain_than_a_share_of_all():
    right = np.repeat([0.0, 6.0], 100)  # each prompt's comparisons are all right, or none
    assert intervals.ratio(right, np.full(200, 6.0)).high - 0.5 > 2 * (intervals.share(600, 1200).high - 0.5)


def test_a_mean_of_one_value_has_no_bounds_and_none_has_no_figure():
    assert intervals.mean([3.0])[:3] == (3.0, -np.inf, np.inf)
    assert intervals.mean([]) is None
    assert intervals.share(0, 0) is None
    assert intervals.ratio([], []) is None


def moments_of(x, y):
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    return np.stack([(x * y).sum(-1), (x * x).sum(-1), (y * y).sum(-1)], -1)


def test_the_correlation_is_spearmans_within_prompts():
    rng = np.random.default_rng(0)
    x, y = (
        rng.permuted(np.arange(8.0) * np.ones((1, 8)), axis=1),
        rng.permuted(np.arange(8.0) * np.ones((1, 8)), axis=1),
    )
    assert intervals.correlation(moments_of(x, y)).value == pytest.approx(spearmanr(x[0], y[0]).statistic)


@pytest.mark.parametrize("n", [50, 500])
def test_the_bounds_of_a_correlation_hold(n):
    rng, figures = np.random.default_rng(n), []
    for _ in range(REPEATS // 2):
        x = rng.normal(size=(n, 400))[:, :4]
        figures.append(intervals.correlation(moments_of(x, 0.5 * x + rng.normal(size=x.shape))))
    assert part_that_hold(0.5 / 1.25**0.5, figures) > LEAST - 0.03 * (n == 50) - 0.01


@pytest.mark.parametrize("n", [50, 500, 5000])
def test_two_samples_of_one_distribution_have_hardly_an_index(n):
    """Ten bins of two samples: in the mean the index is 9 (1/n + 1/n), which is taken off, and chi-square about it."""
    rng = np.random.default_rng(n)
    figures = [intervals.population_stability(rng.normal(size=n), rng.normal(size=n)) for _ in range(500)]
    over = (chi2.ppf(0.9999, 9) - 9) * 2 / n
    assert np.mean([figure.value > over for figure in figures]) < 0.02
    assert np.mean([figure.low > 0.25 for figure in figures]) == 0  # no false alarm


def test_the_index_of_a_shift_is_that_of_the_definition():
    n = 200_000
    rng = np.random.default_rng(0)
    found = intervals.population_stability(rng.normal(size=n), rng.normal(0.5, 1, size=n))
    edges = [-np.inf, *norm.ppf(np.linspace(0.1, 0.9, 9)), np.inf]
    p, q = np.full(10, 0.1), np.diff(norm.cdf(np.array(edges) - 0.5))
    assert found.value == pytest.approx(((q - p) * np.log(q / p)).sum(), abs=0.01)
    assert found.low > 0.2


def test_a_column_of_one_value_has_no_bins_and_no_drift():
    assert intervals.population_stability(np.full(10, 64.0), np.full(20, 64.0)).value == 0.0
