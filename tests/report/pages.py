"""Pages to render in tests."""

from dataclasses import replace
from typing import Any

import numpy as np

from rgtg.evaluation.gates import Gate
from rgtg.evaluation.stats import Mean
from rgtg.report.accumulate import histogram
from rgtg.report.run_figures import Cost, Gates, Length, Page, Pair, Side, Sides
from rgtg.report.token_tint import full_tint, tinted


def side(text: str = "a good tent", seed: int = 0, **changes: Any) -> Side:
    """A completion of a token a byte, with rewards at random."""
    ids = list(text.encode("utf-8", "replace"))
    rewards = np.random.default_rng(seed).normal(size=len(ids)).cumsum()
    pieces = tinted(ids, list(rewards), lambda i: bytes(i).decode("utf-8", "replace"), shared=2)
    made = Side("pargs", 0.123 + seed, 1.5 - seed, len(ids), "stop", "", pieces)
    return replace(made, **changes)


def pair(**changes: Any) -> Pair:
    made = Pair("at random", "id-1", [(None, "review of a tent:")], 0, side(), side(seed=1), 0.456, 0.25)
    return replace(made, **changes)


GATES = Gates(
    "fail",
    [
        Gate(
            "hacking",
            "fail",
            -3.21,
            -4.5,
            -2.5,
            160,
            0.0,
            -2.0,
            "The judge's gain",
            "It falls by 3.21.",
        ),
        Gate("length", "warn", 0.271, 0.21, 0.33, 157, 0.2, 0.4, "score and tokens", "Longer texts score higher."),
        Gate("yield", "pass", 0.019, 0.005, 0.05, 160, 0.2, 0.6, "prompts without a pair", "Few have none."),
        Gate("prompt-blind", "unknown", None, None, None, None, None, None, "other prompts", "There is no judge."),
        Gate("drift", "off", None, None, None, None, 0.1, 0.25, "the other run", "Turned off."),
    ],
)


def page(**changes: Any) -> Page:
    """One with everything."""
    random = np.random.default_rng(3)
    points = np.stack([random.integers(5, 60, 200), random.normal(size=200)], 1).astype(float)
    pairs = changes.pop(
        "pairs", [pair(), pair(why="of largest margin", prompt=[("system", "Be kind."), ("user", "Hi")])]
    )
    increments = (p.increment for of in pairs for s in (of.chosen, of.rejected) for p in s.pieces)
    made = Page(
        run_id="2026-11-27",
        created="2026-11-27T22:00:00Z",
        method="pargs",
        strategy="guided-unguided",
        complete=True,
        ranked=False,
        train=1234,
        test=56,
        prompts=1300,
        completions=10400,
        mean_margin=0.904,
        right=Mean(0.977, 0.007, 1290),
        gates=GATES,
        accuracy={"partial": {"0.5": 0.663, "1.0": 0.709}},
        warnings=["half of the pairs could not be used"],
        sides=[
            Sides(
                "reward model",
                ("unguided", "guided"),
                (Mean(-0.08, 0.006, 500), Mean(0.28, 0.005, 500)),
                Mean(0.36, 0.008, 500),
            ),
            Sides("judge, in the pairs", ("rejected", "chosen"), (Mean(-1.2, 0.1, 99), None), None),
        ],
        histograms={
            "score": histogram({"chosen": points[:90, 1], "rejected": points[90:, 1], "all": points[:, 1]}, 400),
            "margin": histogram({"margin": np.abs(points[:, 1])}, 350),
            "tokens": histogram({"chosen": points[:, 0]}, 200),
        },
        length=Length(0.12, -0.34, 0.56, 200, 987, points),
        without=[("the completions are too similar", 8), ("prompts with an error", 2)],
        pairs=pairs,
        full=full_tint(increments),
        cost=Cost({"prompts": 0.4, "train_reward": 664.0, "generate": 7300.0}, 2.2, 177242, 1609.3, 4711.5),
        settings={"generate.beta": "1.5"},
        digests={"generate: models.language": "sha256:abc"},
        versions={"torch": "2.13.0"},
        missing={},
    )
    return replace(made, **changes)
