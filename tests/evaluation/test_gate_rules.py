import numpy as np
import pytest

from rgtg.evaluation import intervals
from rgtg.evaluation.gates import FEW, GATES, gate, hold, verdict_of
from rgtg.evaluation.intervals import Figure
from rgtg.gate_settings import Gates

THRESHOLDS = Gates().model_dump()


def test_every_gate_has_a_threshold_and_every_threshold_a_gate():
    assert set(GATES) == set(THRESHOLDS) - {"on_fail", "compare_with"}


@pytest.mark.parametrize(
    ("name", "figure", "threshold", "verdict"),
    [
        ("truncation", Figure(0.30, 0.25, 0.35, 500), 0.2, "fail"),
        ("truncation", Figure(0.22, 0.18, 0.26, 500), 0.2, "warn"),  # not surely past the threshold
        ("truncation", Figure(0.06, 0.04, 0.08, 500), 0.2, "warn"),  # past the row's own mark
        ("truncation", Figure(0.02, 0.01, 0.03, 500), 0.2, "pass"),
        ("truncation", Figure(0.90, 0.85, 0.95, FEW - 1), 0.2, "warn"),  # too few to fail
        ("truncation", Figure(0.90, 0.85, 0.95, 500), None, "off"),
        ("truncation", None, 0.2, "unknown"),
        ("labels", Figure(0.50, 0.48, 0.52, 2000), 0.55, "fail"),
        ("labels", Figure(0.60, 0.58, 0.62, 2000), 0.55, "warn"),
        ("labels", Figure(0.90, 0.88, 0.92, 2000), 0.55, "pass"),
        ("learned", Figure(0.55, 0.51, 0.59, 500), 0.5, "pass"),
        ("learned", Figure(0.52, 0.48, 0.56, 500), 0.5, "fail"),  # what has learned has to show it
        ("guidance", Figure(0.1, -0.1, 0.3, 500), 0.0, "warn"),
        ("guidance", Figure(-0.3, -0.4, -0.2, 500), 0.0, "fail"),
        ("hacking", Figure(-0.1, -0.3, 0.1, 500), 0.0, "warn"),
        ("hacking", Figure(-0.3, -0.4, -0.2, 500), 0.0, "fail"),
        ("degenerate", Figure(0.0, 0.0, 0.01, 500), 0.0, "pass"),
    ],
)
def test_verdict(name, figure, threshold, verdict):
    held = gate(name, figure, threshold)
    assert held.verdict == verdict
    assert f"gates.{name}" in held.sentence or figure is None


def test_the_sentence_has_figure_bounds_number_and_setting():
    held = gate("truncation", Figure(0.3, 0.25, 0.35, 1500), 0.2)
    assert held.sentence == (
        "the part of chosen texts that were cut off at max_new_tokens is 0.300 (95 %: 0.250 to 0.350, n = 1,500); it "
        "fails above 0.2 (gates.truncation)"
    )


def test_a_night_is_as_good_as_its_worst_gate():
    good = {"truncation": Figure(0.01, 0.0, 0.02, 900)}
    assert verdict_of(hold(good, THRESHOLDS)) == "pass"
    assert verdict_of(hold({"truncation": Figure(0.1, 0.08, 0.12, 900)}, THRESHOLDS)) == "warn"
    assert verdict_of(hold(good | {"labels": Figure(0.4, 0.38, 0.42, 900)}, THRESHOLDS)) == "fail"


@pytest.mark.parametrize("n", [500, 5000])
def test_of_nights_at_the_threshold_few_fail(n):
    """At the threshold itself the bound is past it in one case of forty; clean nights are far from there."""
    rng = np.random.default_rng(n)
    fails = [gate("labels", intervals.share(k, n), 0.55).verdict == "fail" for k in rng.binomial(n, 0.55, 2000)]
    assert np.mean(fails) < 0.025 + 3.7 * (0.025 * 0.975 / 2000) ** 0.5
    sure = [gate("labels", intervals.share(k, n), 0.55).verdict == "fail" for k in rng.binomial(n, 0.45, 2000)]
    assert np.mean(sure) > 0.95
