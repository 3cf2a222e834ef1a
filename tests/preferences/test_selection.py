"""Which completions of a prompt make a pair, and why the others do not."""

import math
import random
from inspect import signature

import pytest

from rgtg.methods import STRATEGIES
from rgtg.preferences import selection
from rgtg.preferences.selection import (
    CLOSE,
    FEW,
    IDENTICAL,
    LENGTH,
    SIMILAR,
    TIED,
    TRUNCATED,
    Night,
    Rules,
    Statistics,
    candidates,
    select,
)

METHODS = {"g": ("pargs", 2.0), "u": ("unguided", 0.0), "o": ("pargs", -2.0)}


def completion(kind, score, text=None, tokens=None, finish="stop"):
    method, beta = METHODS[kind]
    text = f"text {score}" if text is None else text
    ids = [ord(c) for c in text] if tokens is None else tokens
    return {"text": text, "token_ids": ids, "score": score, "finish_reason": finish, "method": method, "beta": beta}


def pair(completions, name="best-worst", prompt_id="p", night=None, **rules):
    """The indices of chosen and rejected, or the reason why there is no pair."""
    rules = Rules(**rules)
    selected = select(candidates(completions, rules), name, rules, night or Night(), prompt_id)
    return selected if isinstance(selected, str) else tuple(c.index for c in selected)


def guided(*scores):
    return [completion("g", score) for score in scores]


def test_the_best_and_the_worst():
    assert pair(guided(0.5, 3.0, -2.0, 1.0)) == (1, 2)


def test_equal_scores_at_an_end_take_the_first():
    assert pair([completion("g", s, f"text {i}") for i, s in enumerate((1.0, 3.0, 3.0, 1.0))]) == (1, 0)


@pytest.mark.parametrize(
    ("completions", "rules", "reason"),
    [
        ([], {}, FEW),
        (guided(1.0), {}, FEW),
        (guided(1.0, None), {}, FEW),
        (guided(1.0, math.nan), {}, FEW),
        (guided(1.0, math.inf), {}, FEW),
        ([completion("g", 1.0), completion("g", 0.0, " \n\t")], {}, FEW),
        ([completion("g", 1.0), completion("g", 0.0, "", [2])], {}, FEW),
        (guided(1.0, 1.0, 1.0), {}, TIED),
        ([completion("g", 1.0, "x"), completion("g", 2.0, "x")], {}, IDENTICAL),
        ([completion("g", 1.0, "x  y\r\n"), completion("g", 2.0, "x y")], {}, IDENTICAL),
        ([completion("g", 1.0, "caf\u00e9"), completion("g", 2.0, "cafe\u0301")], {}, IDENTICAL),
        (guided(1.0, 1.5), {"min_margin": 0.5}, CLOSE),
        (guided(1.0, 1.4), {"min_margin": 0.5}, CLOSE),
        ([completion("g", 2.0, finish="length"), completion("g", 1.0, finish="length")], {}, TRUNCATED),
        ([completion("g", 2.0, finish="length"), completion("g", 1.0)], {}, CLOSE),
        ([completion("g", 2.0, finish="length"), completion("g", 1.0)], {"truncated": "drop"}, FEW),
        ([completion("g", 2.0, "a" * 10), completion("g", 1.0, "a" * 9 + "b")], {"max_similarity": 0.8}, SIMILAR),
        ([completion("g", 2.0, "a" * 10), completion("g", 1.0, "b" * 13)], {"length": "matched"}, LENGTH),
    ],
)
def test_reasons(completions, rules, reason):
    assert pair(completions, **rules) == reason


def test_a_margin_that_is_reached():
    assert pair(guided(1.0, 1.75), min_margin=0.5) == (1, 0)


def test_similarity_that_is_allowed():
    assert pair([completion("g", 2.0, "a" * 10), completion("g", 1.0, "a" * 9 + "b")], max_similarity=0.9) == (0, 1)


def test_a_truncated_completion_is_rejected_but_not_chosen():
    completions = [completion("g", 3.0, finish="length"), completion("g", 2.0), completion("g", 1.0, finish="length")]
    assert pair(completions) == (1, 2)
    assert pair(completions, truncated="keep") == (0, 2)


MIXED = [completion("g", 1.0), completion("g", 2.0), completion("u", 3.0), completion("u", 0.0), completion("o", -9.0)]


@pytest.mark.parametrize(
    ("name", "expected"), [("best-worst", (1, 0)), ("guided-unguided", (1, 3)), ("opposed", (1, 4))]
)
def test_sides_come_from_their_pools(name, expected):
    assert pair(MIXED, name) == expected


def test_an_unguided_run_has_a_pool_of_its_own():
    assert pair([completion("u", 1.0), completion("u", 2.0)]) == (1, 0)


def test_a_guided_completion_that_is_worse_makes_no_pair():
    assert pair([completion("g", 1.0), completion("u", 2.0)], "guided-unguided") == CLOSE


def test_random_pairs_are_confirmed_by_the_score_and_spread_over_all():
    seen = {pair(MIXED, "guided-unguided-random", prompt_id=str(i)) for i in range(50)}
    assert seen == {(0, 3), (1, 3)}
    seen = {pair(guided(0.0, 1.0, 2.0, 3.0), "best-random", prompt_id=str(i)) for i in range(100)}
    assert seen == {(3, 0), (3, 1), (3, 2)}


def test_of_many_samples_the_rejected_is_near_two_deviations_below_the_mean():
    scores = [0.0, 0.1, -0.1, 0.05, -0.05, 0.2, -0.2, 1.0, -1.0, -20.0]  # one is broken
    mean = sum(scores) / 10
    deviation = math.sqrt(sum((s - mean) ** 2 for s in scores) / 9)
    nearest = min(range(10), key=lambda i: abs(scores[i] - (mean - 2 * deviation)))
    assert pair(guided(*scores), "best-near") == (7, nearest)
    # Of few samples the deviation is the night's.
    assert pair(guided(3.0, 2.0, 1.0, 0.0), "best-near", night=Night(deviation=0.3)) == (0, 2)


def test_scores_without_what_length_explains():
    """Longer is better by 1 a doubling, and among equals in that respect the second is better."""
    completions = [completion("g", 4.0, "a" * 16), completion("g", 2.5, "b" * 4), completion("g", 3.0, "c" * 8)]
    night = Night(slope=1 / math.log(2))
    assert pair(completions) == (0, 1)
    assert pair(completions, length="residual", night=night)[0] == 1


def test_the_slope_is_estimated_within_prompts():
    """Between prompts longer is worse; within each it is better by 2 a unit of log(tokens)."""
    rng, statistics = random.Random(0), Statistics()
    for _ in range(200):
        base = rng.uniform(1, 4)
        lengths = [round(math.exp(base + rng.uniform(0, 2))) for _ in range(4)]
        found = candidates([completion("g", 2 * math.log(n) - 9 * base, "x", [5] * n) for n in lengths], Rules())
        statistics.add(found)
    assert statistics.night().slope == pytest.approx(2.0, rel=1e-9)
    single = Statistics()
    single.add(candidates(guided(1.0), Rules()))
    assert single.night() == Night(0.0, 0.0)


def test_a_night_of_one_prompt_has_its_deviation():
    statistics = Statistics()
    statistics.add(candidates(guided(1.0, 2.0, 4.0), Rules()))
    assert statistics.night().deviation == pytest.approx(math.sqrt(7 / 3))


def test_every_selection_names_a_function():
    for row in (row for row in STRATEGIES.values() if row.key is not None):
        assert len(signature(getattr(selection, row.key)).parameters) == 5


def ranking(completions, night=None, **rules):
    found = pair(completions, "ranked", night=night, **rules)
    return found if isinstance(found, str) else list(found)


def test_a_ranking_has_all_pools_and_the_highest_score_first():
    mixed = [completion("g", 1.0), completion("u", 3.0), completion("o", -1.0), completion("g", 2.0)]
    assert ranking(mixed) == [1, 3, 0, 2]


@pytest.mark.parametrize(
    ("completions", "rules", "expected"),
    [
        (guided(1.0), {}, FEW),
        (guided(1.0, 1.0), {}, CLOSE),
        ([completion("g", s, "same") for s in (1.0, 2.0)], {}, IDENTICAL),
        ([completion("g", s, finish="length") for s in (1.0, 2.0)], {}, TRUNCATED),
        ([completion("g", s, finish="length") for s in (1.0, 2.0)], {"truncated": "keep"}, [1, 0]),
        # 1.6 is too near to 2.0 and is left out; 1.2 is far enough from 2.0, which stands above it then.
        (guided(2.0, 1.6, 1.2), {"min_margin": 0.5}, [0, 2]),
        ([completion("g", s, t) for s, t in ((3.0, "abcdef"), (2.0, "xyz"), (1.0, "abcdeg"))], {}, [0, 1, 2]),
        (
            [completion("g", s, t) for s, t in ((3.0, "abcdef"), (2.0, "xyz"), (1.0, "abcdeg"))],
            {"max_similarity": 0.5},
            [0, 1],
        ),
    ],
)
def test_what_a_ranking_leaves_out(completions, rules, expected):
    assert ranking(completions, **rules) == expected


def test_a_ranking_without_what_length_explains():
    long = completion("g", 2.0, "long", tokens=list(range(100)))
    assert ranking([long, completion("g", 1.0, "short", tokens=[1])], Night(slope=1.0), length="residual") == [1, 0]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("abcd", "abcd", 1.0),
        ("abcd", "wxyz", 0.0),
        ("abcd", "abxd", 2 * 3 / 10),  # two of five bigrams differ
        ("abc", "cba", 0.0),  # the same tokens in another order
        ("a", "a", 1.0),
        ("aaaa", "aaa", 2 * 4 / 9),
    ],
)
def test_similarity_by_hand(a, b, expected):
    assert selection.similarity(list(map(ord, a)), list(map(ord, b))) == expected


def test_one_token_repeated_is_compared_in_no_time():
    """A longest common subsequence of these takes minutes."""
    assert selection.similarity([7] * 200_000, [7] * 199_000) > 0.99
