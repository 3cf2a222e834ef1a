"""The score of a text, by hand and against its tensor counterpart."""

import pytest
import torch

from rgtg.text_score import WAYS, check_way, prefix_scores, score

REWARDS = [1.0, -2.0, 4.0, 0.5]


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("final", 0.5),
        ("mean", 3.5 / 4),
        ("linear", (1 - 4 + 12 + 2) / 10),
        ("last-1", 0.5),
        ("last-3", 2.5 / 3),
        ("last-8", 3.5 / 4),  # a shorter text is taken whole
    ],
)
def test_scores_by_hand(way, expected):
    assert score(REWARDS, way) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("way", [*WAYS, "last-1", "last-3", "last-100"])
def test_a_prefix_has_the_score_that_it_has_as_a_text(way):
    rewards = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    scores = prefix_scores(rewards, way)
    assert scores.shape == (3, 20)
    for row, of_row in zip(rewards.tolist(), scores.tolist(), strict=True):
        for n in range(1, 21):
            # Sums of up to 20 numbers, in float64.
            assert of_row[n - 1] == pytest.approx(score(row[:n], way), abs=1e-13)


@pytest.mark.parametrize(
    "way", ["last", "last-0", "last--1", "last-1.5", "median", "", "Mean", "last-1234567", 3, None]
)
def test_what_is_no_score(way):
    with pytest.raises(ValueError, match="is unknown; there are final, mean, linear"):
        check_way(way)
