"""All that the page of a run shows, and all that report.json holds."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from rgtg.evaluation.gates import Gate, Verdict
from rgtg.evaluation.stats import Mean
from rgtg.report.accumulate import Histogram
from rgtg.report.token_tint import Piece


@dataclass(frozen=True)
class Gates:
    verdict: Verdict
    gates: list[Gate]


@dataclass(frozen=True)
class Sides:
    """What one scorer gives to two kinds of completions, and how much more to the second kind."""

    scorer: str
    kinds: tuple[str, str]
    means: tuple[Mean | None, Mean | None]
    gain: Mean | None


@dataclass(frozen=True)
class Length:
    """How the score goes with the number of tokens; `points` (n, 2): tokens and score of a sample."""

    rank: float | None  # Spearman's over all completions of the sample
    within: float | None  # correlation within the prompts
    longer: float | None  # part of the pairs whose chosen side has more tokens; an equal number is a half
    sample: int  # completions, of
    total: int
    points: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Side:
    """One completion of a pair; without `pieces` its text stands alone. What is `hidden` is not shown."""

    method: str | None
    score: float | None
    judge_score: float | None
    tokens: int
    finish: str | None
    text: str
    pieces: list[Piece]
    hidden: int = 0  # tokens, or characters where there are no pieces


@dataclass(frozen=True)
class Pair:
    why: str  # it is shown
    prompt_id: str
    prompt: list[tuple[str | None, str]]  # (role, text); text alone has no role
    prompt_hidden: int  # characters
    chosen: Side
    rejected: Side
    margin: float | None
    agreement: float | None


@dataclass(frozen=True)
class Cost:
    seconds: dict[str, float]  # of each stage
    device_hours: float | None  # of training and decoding, at most: actors may have been fewer
    tokens: int | None
    tokens_per_second: float | None
    pairs_per_hour: float | None  # of all stages


@dataclass(frozen=True)
class Page:
    run_id: str
    created: str
    method: str | None
    strategy: str | None
    complete: bool
    ranked: bool
    train: int | None  # pairs
    test: int | None
    prompts: int | None
    completions: int | None
    mean_margin: float | None
    right: Mean | None  # in the sandbox: pairs the right way round
    gates: Gates | None
    warnings: list[str]
    accuracy: dict[
        str, dict[str, float]
    ]  # of each reward model that the run has trained, by the part that it has seen
    sides: list[Sides]
    histograms: dict[str, Histogram]
    length: Length | None
    without: list[tuple[str, int]]  # prompts without a pair, by reason
    pairs: list[Pair]
    full: float  # the increment from which on the tint is full
    cost: Cost
    settings: dict[str, str]
    digests: dict[str, str]
    versions: dict[str, str]
    missing: dict[str, str]  # by section: why there is nothing in it

    @property
    def rewards(self) -> tuple[float, float]:
        """The smallest and the largest cumulative reward of the pairs that are shown."""
        sides = [side for pair in self.pairs for side in (pair.chosen, pair.rejected)]
        known = [piece.reward for side in sides for piece in side.pieces if piece.reward is not None]
        return (min(known), max(known)) if known else (0.0, 0.0)

    @property
    def drift(self) -> list[Gate]:
        return [gate for gate in self.gates.gates if gate.name.startswith("drift")] if self.gates else []

    def figures(self) -> dict[str, Any]:
        """What report.json holds: every number of the page, unrounded, and its texts."""
        found = asdict(self)
        if self.length:
            del found["length"]["points"]
        return found | {"rewards": self.rewards}
