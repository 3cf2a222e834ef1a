import math

import pytest

from rgtg.config import Generate
from rgtg.evaluation.results import at_kl, measure
from rgtg.evaluation.stats import Mean
from rgtg.evaluation.variants import variants


def completion(text="a b", reward=1.0, logprob=-5.0, guided=-3.0, tokens=4, language=4, calls=40, reason="length"):
    return {
        "text": text,
        "num_tokens": tokens,
        "finish_reason": reason,
        "reward": -reward,
        "score": reward,
        "logprob": logprob,
        "guided_logprob": guided,
        "language_calls": language,
        "reward_calls": calls,
    }


def row(*completions, error=None):
    return {"completions": list(completions) or None, "error": error}


def of(entry):
    return variants([entry], Generate())[0]


def test_means_are_over_prompts_and_rows_with_an_error_are_counted():
    rows = [
        row(completion(reward=1.0), completion(reward=3.0, text="a b c", reason="stop", guided=-5.0)),
        row(completion(reward=4.0, tokens=8, guided=-2.0), completion(reward=6.0, guided=-4.0)),
        row(error="the prompt is null"),
    ]
    result = measure(of("pargs beta=2"), rows, {"judge": [[1.0, 0.0], [1.0, 1.0], []]}, seconds=2.0)
    assert result.scores["score"].value == pytest.approx((2 + 5) / 2)
    assert result.scores["score"].error == pytest.approx(math.sqrt(4.5 / 2))
    assert result.scores["judge"] == Mean(0.75, pytest.approx(0.25), 2)
    assert result.kl.value == pytest.approx(((2 + 0) / 2 + (3 + 1) / 2) / 2)
    assert (result.tokens, result.stopped, result.completions, result.errors) == (5.0, 0.25, 4, 1)
    assert result.tokens_per_second == 10.0
    assert result.rouge_l == pytest.approx((0.8 + 1.0) / 2)


def test_a_search_has_no_kl():
    rows = [row(completion(guided=None), completion(guided=None))]
    assert measure(of("best-of-n"), rows, {}, 1.0).kl is None


def test_nothing_but_errors_is_no_division_by_zero():
    result = measure(of("pargs"), [row(error="no room")], {"judge": [[]]}, 0.0)
    assert result.scores == {"score": None, "judge": None}
    assert result.kl is None
    assert math.isnan(result.tokens_per_second)


def test_scores_at_equal_kl_lie_on_the_line_between_neighbours():
    results = [
        measure(of(f"pargs beta={beta}"), [row(completion(guided=-5.0 + kl, reward=r))] * 2, {}, 1.0)
        for beta, kl, r in ((1, 2.0, 1.0), (4, 6.0, 2.0), (2, 4.0, 1.6))
    ]
    assert at_kl(results, "score", 3.0).value == pytest.approx(1.3)
    assert at_kl(results, "score", 5.0).value == pytest.approx(1.8)
    assert at_kl(results, "score", 6.0).value == pytest.approx(2.0)
    assert at_kl(results, "score", 1.9) is None
    assert at_kl(results, "score", 6.1) is None
