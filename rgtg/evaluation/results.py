"""What is measured of completions: scores, distance from the language model, diversity, cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rgtg.evaluation.diversity import distinct, self_rouge_l
from rgtg.evaluation.stats import Mean, mean
from rgtg.evaluation.variants import Variant


@dataclass(frozen=True)
class Result:
    """The measurements of one variant. Means are over prompts, since the samples of a prompt go together."""

    name: str
    family: str
    beta: float
    scores: dict[str, Mean | None]  # by who scored; `score` is by the guiding model, on a scale of its own
    kl: Mean | None  # KL(pi || p) of whole completions, in nats; None where pi has no known probabilities: a search
    tokens: float  # of a completion; and of these per completion:
    language_calls: float
    reward_calls: float
    stopped: float  # part that ended with an EOS
    distinct_2: float
    rouge_l: float | None  # between the samples of a prompt
    completions: int
    errors: int
    seconds: float  # of decoding, from when the first actor was ready, by all of them

    @property
    def tokens_per_second(self) -> float:
        return self.tokens * self.completions / self.seconds if self.seconds else math.nan


Rows = Sequence[Mapping[str, Any]]
Scores = Sequence[Sequence[float]]  # of each completion of each row


def measure(
    variant: Variant,
    rows: Rows,
    judged: Mapping[str, Scores],
    seconds: float,
    logprobs: Scores | None = None,
) -> Result:
    """Measure rows of completions/; `judged` has the scores of each judge, as lists per row and completion.

    `logprobs` are the run's language model's, where another one completed.
    """
    good = [row["completions"] or [] for row in rows]
    every = [c for completions in good for c in completions]
    logprobs = logprobs or [[c["logprob"] for c in completions] for completions in good]
    kls = [
        [c["guided_logprob"] - p for c, p in zip(cs, ps, strict=True) if c["guided_logprob"] is not None]
        for cs, ps in zip(good, logprobs, strict=True)
    ]
    scores = {"score": [[c["score"] for c in cs if c["score"] is not None] for cs in good], **judged}
    rouges = [score for cs in good if (score := self_rouge_l([c["text"] for c in cs])) is not None]

    def average(name: str) -> float:
        return sum(c[name] for c in every) / max(1, len(every))

    return Result(
        name=variant.name,
        family=variant.family,
        beta=variant.beta,
        scores={name: _mean_by_prompt(values) for name, values in scores.items()},
        kl=_mean_by_prompt(kls),
        tokens=average("num_tokens"),
        language_calls=average("language_calls"),
        reward_calls=average("reward_calls"),
        stopped=sum(c["finish_reason"] == "stop" for c in every) / max(1, len(every)),
        distinct_2=distinct([c["text"] for c in every], 2),
        rouge_l=sum(rouges) / len(rouges) if rouges else None,
        completions=len(every),
        errors=sum(row["error"] is not None for row in rows),
        seconds=seconds,
    )


def at_kl(results: Sequence[Result], scorer: str, kl: float) -> Mean | None:
    """The score of a family at a given KL, interpolated between its two nearest members; None outside of them.

    Two reward models have two scales, so that one `beta` is not one strength: families are compared at equal KL.
    """
    points = sorted(
        ((r.kl.value, score) for r in results if r.kl and (score := r.scores.get(scorer))),
        key=lambda point: point[0],
    )
    for (low, first), (high, second) in zip(points, points[1:], strict=False):
        if low <= kl <= high and high > low:
            part = (kl - low) / (high - low)
            value = first.value + part * (second.value - first.value)
            error = math.hypot((1 - part) * first.error, part * second.error)
            return Mean(value, error, min(first.n, second.n))
    return None


def _mean_by_prompt(values: Sequence[Sequence[float]]) -> Mean | None:
    return mean(sum(row) / len(row) for row in values if row)
