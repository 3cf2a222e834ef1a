"""The arithmetic of the experiments; what they find is no test's business."""

import random

import pytest

from pipelines.experiments import imdb_pairs, lessons, probes
from pipelines.experiments.labels import SOURCES
from pipelines.experiments.policies import Pair
from pipelines.experiments.preferences_report import curves, gain_at, picture, tables
from rgtg.models.language import LanguageModel


def test_gains_at_equal_kl_lie_on_the_root_of_kl():
    points = [(1.0, 0.2), (4.0, 0.4)]
    assert gain_at(points, 0.25) == pytest.approx(0.1)
    assert gain_at(points, 2.25) == pytest.approx(0.3)
    assert gain_at(points, 4.0) == pytest.approx(0.4)
    assert gain_at(points, 4.1) is None


ROWS = {
    "policy/guide/guide/opposed/dpo/0.3/150/0/0": {"gain": 0.1, "kl": 1.0},
    "policy/guide/guide/opposed/dpo/0.3/150/1/0": {"gain": 0.3, "kl": 1.0},
    "policy/guide/guide/opposed/dpo/0.1/150/0/0": {"gain": 0.4, "kl": 4.0, "prefers_better": 0.5},
    "labels/guide/mean/0": {"opposed": {"right": 0.9, "margin": 1.0, "length": 0.5, "2-grams": 0.6}},
    "labels/guide/mean/1": {"opposed": {"right": 0.8, "margin": 1.0, "length": 0.5, "2-grams": 0.6}},
    "decoding/guide/0": {"guided": 0.9, "kl": 2.0, "best-of-n": 0.5},
    "seconds/0": {"guided": 0.02, "unguided": 0.01, "best of n": 12.0},
}


def test_a_curve_has_a_point_for_each_beta_by_the_means_of_seeds():
    assert curves(ROWS) == {("guide", "guide", "opposed", "dpo"): [(1.0, pytest.approx(0.2)), (4.0, 0.4)]}


def test_tables_of_the_rows_that_are_there():
    text = tables(ROWS)
    assert "| guide | mean | opposed | 0.850 ± 0.071 | 1.000 ± 0.000 | 0.500 ± 0.000 | 0.600 ± 0.000 |" in text
    assert "four of each take the time of 12.0 unguided ones" in text
    assert "| guide | guide | opposed | dpo | +0.20 | +0.35 |" in text  # .2 + .2 (sqrt 3 - 1)
    assert picture(ROWS).startswith(b"\x89PNG")
    assert tables({})


def test_a_probe_of_length_sees_length_alone():
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdef", k=10)) for _ in range(400)]
    longer = [Pair("p", text + " a a", text) for text in texts]
    assert probes.by_length(longer) == 1.0
    assert probes.by_length([Pair("p", text, text + " a") for text in texts]) == 1.0  # or shorter
    alike = [Pair("p", a, b) for a, b in zip(texts, reversed(texts), strict=True)]
    assert probes.by_length(alike) == 0.5


def test_a_probe_of_2_grams_sees_words_and_finds_nothing_where_nothing_is():
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdef", k=10)) for _ in range(800)]
    assert probes.by_two_grams([Pair("p", f"good {text}", f"bad {text}") for text in texts]) > 0.9
    pairs = [Pair("p", a, b) for a, b in zip(texts[:400], texts[400:], strict=True)]
    # Of 200 pairs at chance the part is within 4 standard errors of a half.
    assert abs(probes.by_two_grams(pairs) - 0.5) < 4 * 0.5 / 200**0.5


def test_courses_name_sources_and_trainers():
    assert len(set(lessons.COURSES)) == len(lessons.COURSES)
    for course in lessons.COURSES:
        assert course.source in {lessons.GIVEN, *SOURCES}
        assert course.trainer in lessons.TRAINERS


def test_a_mean_hidden_state_is_that_of_the_text_alone(language_dir):
    model = LanguageModel.load(language_dir, device="cpu")
    texts = ["a", "a long text of many words", "", "words"]
    together = imdb_pairs.hidden_states(model, texts)
    for text, states in zip(texts, together, strict=True):
        # Sums of 32 numbers near 1 in another order, two layers deep: hundreds of roundings, of 6e-8 each.
        assert states == pytest.approx(imdb_pairs.hidden_states(model, [text])[0], abs=1e-4)
    assert abs(together[0] - together[1]).max() > 0.01
