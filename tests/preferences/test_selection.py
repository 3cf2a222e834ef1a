"""Which completions of a prompt make a pair, and why the others do not."""

import math

import pytest

from rgtg.preferences.selection import CLOSE, FEW, IDENTICAL, TIED, best_and_worst


def completions(*rewards, texts=None):
    return [{"text": t, "reward": r} for t, r in zip(texts or "abcdefgh", rewards, strict=False)]


def test_the_best_and_the_worst():
    best, worst = best_and_worst(completions(0.5, 3.0, -2.0, 1.0))
    assert (best, worst) == ({"text": "b", "reward": 3.0}, {"text": "c", "reward": -2.0})


def test_equal_rewards_at_an_end_take_the_first():
    best, worst = best_and_worst(completions(1.0, 3.0, 3.0, 1.0))
    assert (best["text"], worst["text"]) == ("b", "a")


@pytest.mark.parametrize(
    ("rewards", "texts", "margin", "reason"),
    [
        ((), None, 0.0, FEW),
        ((1.0,), None, 0.0, FEW),
        ((1.0, None), None, 0.0, FEW),
        ((None, None), None, 0.0, FEW),
        ((1.0, 1.0, 1.0), None, 0.0, TIED),
        ((1.0, 2.0), ["x", "x"], 0.0, IDENTICAL),
        ((1.0, 1.5), None, 0.5, CLOSE),
        ((1.0, 1.4), None, 0.5, CLOSE),
        ((1.0, 1.0), ["x", "x"], 0.5, TIED),
    ],
)
def test_reasons(rewards, texts, margin, reason):
    assert best_and_worst(completions(*rewards, texts=texts), margin) == reason


def test_a_margin_that_is_reached():
    best, worst = best_and_worst(completions(1.0, 1.75), 0.5)
    assert best["reward"] - worst["reward"] == 0.75


def test_a_completion_without_a_reward_is_not_one_to_choose():
    best, worst = best_and_worst(completions(None, 1.0, 2.0))
    assert (best["text"], worst["text"]) == ("c", "b")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_reward_that_is_not_finite_counts_as_none(bad, at):
    rewards = [1.0, 2.0]
    rewards.insert(at, bad)
    best, worst = best_and_worst(completions(*rewards))
    assert (best["reward"], worst["reward"]) == (2.0, 1.0)
    assert best_and_worst(completions(bad, 1.0)) == FEW
