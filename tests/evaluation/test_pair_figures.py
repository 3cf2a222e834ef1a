import random

import pytest

from rgtg.evaluation.pair_figures import CompletionFigures, PairFigures, kendall
from rgtg.evaluation.surface import Probe

WORDS = ["good", "bad", "film", "plot", "scene", "actor", "music", "story", "ending"]


def completion(score, tokens=8, method="pargs", text="a text", logprobs=(-10.0, -8.0)):
    return {
        **{"score": score, "num_tokens": tokens, "method": method, "beta": 2.0 if method == "pargs" else 0.0},
        **{"text": text, "token_ids": list(range(tokens)), "logprob": logprobs[0], "guided_logprob": logprobs[1]},
    }


def pair(i, chosen="a good text", rejected="a bad text", **changes):
    return {
        **{"prompt_id": f"id-{i}", "prompt": "a prompt", "chosen": chosen, "rejected": rejected},
        **{"score_chosen": 1.0, "score_margin": 2.0, "chosen_tokens": 3, "rejected_tokens": 3},
        **{"chosen_finish": "stop", "judge_score_chosen": None, "judge_score_rejected": None},
        **changes,
    }


def of(rows):
    figures = PairFigures()
    for row in rows:
        figures.add(row)
    return figures


def test_length_is_the_correlation_of_ranks_within_a_prompt_alone():
    longer, mixed = CompletionFigures(), CompletionFigures()
    rng = random.Random(0)
    for i in range(300):
        base = 100.0 * i  # between prompts score and length grow together, which must not count
        tokens = rng.sample(range(5 + i, 30 + i), 4)
        longer.add(f"id-{i}", [completion(base + n, n) for n in tokens])
        mixed.add(f"id-{i}", [completion(base + rng.random(), n) for n in tokens])
    assert longer.figures()["length"].value == pytest.approx(1.0)
    found = mixed.figures()["length"]
    assert found.low < 0 < found.high
    assert found.n == 300


def test_gains_distance_and_a_judge_that_sees_the_opposite():
    figures = CompletionFigures()
    for i in range(300):
        wobble = 0.1 * (i % 3)
        own = [completion(1.0 + wobble), completion(1.0 + wobble)]
        unguided = [completion(0.5, method="unguided", logprobs=(-10.0, -9.0))]
        figures.add(f"id-{i}", own + unguided, [-2.0 - wobble, -2.0, 0.0])
    found = figures.figures()
    assert found["guidance"].value == pytest.approx(0.6)
    assert found["off_policy"].value == pytest.approx(1.0)  # of 2 nats guided the 1 of unguided texts is taken off
    assert found["hacking"].high < -1.9
    assert found["similarity"].value == 1.0


def test_without_a_gain_by_the_reward_model_there_is_nothing_to_hack():
    figures = CompletionFigures()
    for i in range(300):
        figures.add(f"id-{i}", [completion(0.5), completion(0.5, method="unguided")], [-1.0, 0.0])
    assert figures.figures()["hacking"] is None


def test_agreement_within_each_pool():
    figures = CompletionFigures()
    for i in range(100):
        own = [completion(float(n)) for n in range(3)]
        unguided = [completion(float(n), method="unguided") for n in range(2)]
        figures.add(f"id-{i}", own + unguided, [0.0, 1.0, 2.0, 5.0, 4.0])
    assert figures.figures()["labels_guided"].value == 1.0
    assert figures.figures()["labels_unguided"].value == 0.0


def test_pairs_that_are_equal_cut_off_or_repeat_their_prompt():
    prompt = "Tell me about the film that you saw on Tuesday evening."
    rows = [
        pair(0, "the same\n text ", "the  same text"),
        pair(1, chosen_finish="length"),
        pair(2, f"You said: {prompt}", prompt=prompt),
        pair(3, [{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]),
    ]
    found = of(rows).figures()
    assert [found[name].value for name in ("degenerate", "truncation", "echo")] == [0.25, 0.25, 0.25]
    assert found["labels"] is None


def test_agreement_of_pairs_counts_those_that_were_judged():
    rows = [pair(i, judge_score_chosen=float(i), judge_score_rejected=1.0) for i in range(3)]
    assert of([*rows, pair(3)]).figures()["labels"][::3] == (0.5, 3)  # below, equal, above


def test_the_probe_finds_a_surface_and_no_words():
    rng = random.Random(0)

    def text(n=8):
        return " ".join(rng.choice(WORDS) for _ in range(n))

    punctuated, worded = Probe(), Probe()
    for i in range(1000):
        punctuated.add(f"id-{i}", text() + "!", text() + "a")
        worded.add(f"id-{i}", "good " + text(), "plot " + text())  # four letters each
    assert punctuated.figure().low > 0.9
    assert worded.figure().low < 0.5 < worded.figure().high


def test_drift_is_found_in_the_column_that_moved():
    rng = random.Random(0)
    before = of(pair(i, score_chosen=rng.gauss(0, 1), score_margin=rng.gauss(1, 1)) for i in range(2000))
    now = of(pair(i, score_chosen=rng.gauss(1, 1), score_margin=rng.gauss(1, 1)) for i in range(2000))
    found = now.drift(before)
    assert found["score"].low > 0.25
    assert found["margin"].value < 0.05
    assert found["tokens"].value == 0.0


def test_hostile_texts_have_figures_too():
    for text in ("", "\ud800", "\x00" * 10, "\u202e" * 100_000):
        of([pair(0, text, "a")]).figures()


def test_kendalls_tau_of_ties_alone_is_unknown():
    assert kendall([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]) == pytest.approx(1 / 3)
    assert kendall([1.0, 1.0], [1.0, 2.0]) is None
