"""What gates ask of a night: figures of its completions and its pairs, added up prompt by prompt.

Memory is some numbers a prompt; of texts nothing is kept but the surface features of a bounded sample.
"""

from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from rgtg.evaluation import intervals
from rgtg.evaluation.intervals import Figure
from rgtg.evaluation.surface import Probe
from rgtg.methods import Pool
from rgtg.preferences.selection import normal, pool_of, similarity

ECHO = 40  # characters of a prompt that a text repeats


class CompletionFigures:
    """Adds up completions, prompt by prompt, and what a judge thinks of them where there is one."""

    def __init__(self, *, by_endpoint: bool = False) -> None:
        self.by_endpoint = by_endpoint  # the judge, whose answers may not be readable
        self.moments = array("d")  # of the ranks of score and tokens: xy, xx, yy a prompt
        self.gains, self.nats, self.likeness = array("d"), array("d"), array("d")
        self.judged: list[tuple[float, float]] = []  # of a prompt: the gains by the reward model and by the judge
        self.agreed: dict[Pool, tuple[array, array]] = defaultdict(lambda: (array("d"), array("d")))
        self.asked = self.unreadable = 0  # verdicts
        self.probe = Probe()

    def add(
        self, prompt_id: str, completions: list[dict[str, Any]], judged: Sequence[float | None] | None = None
    ) -> None:
        """`completions` as in completions/; `judged` are the judge's scores of them, in the same order.

        An endpoint has judged two of them, or none where its verdict could not be read.
        """
        places: dict[Pool, list[int]] = defaultdict(list)
        for i, completion in enumerate(completions):
            if completion["score"] is not None:
                places[pool_of(completion, completions[0])].append(i)
        of = {pool: [completions[i] for i in at] for pool, at in places.items()}
        own, unguided = of.get("own", []), of.get("unguided", [])
        self.moments.extend(_moments(own))
        if len(own) > 1:
            self.likeness.append(similarity(own[0]["token_ids"], own[1]["token_ids"]))
        if own and unguided:
            self.gains.append(_mean(own, "score") - _mean(unguided, "score"))
            # Of both the same part comes from sampling among the top-k tokens alone.
            self.nats.append(_nats(own) - _nats(unguided))
            self.probe.add(prompt_id, own[0]["text"], unguided[0]["text"])
        if judged is None:
            return
        self.asked += 1
        self.unreadable += set(judged) == {None}
        if None not in judged:
            self._add_judged(completions, places, judged)

    def _add_judged(
        self, completions: list[dict[str, Any]], places: dict[Pool, list[int]], judged: Sequence[Any]
    ) -> None:
        own, unguided = places.get("own"), places.get("unguided")
        if own and unguided:
            by_judge = [float(np.mean([judged[i] for i in at])) for at in (own, unguided)]
            self.judged.append((self.gains[-1], by_judge[0] - by_judge[1]))
        for pool, at in places.items():
            right, asked = _agreement([completions[i]["score"] for i in at], [judged[i] for i in at])
            if asked:
                self.agreed[pool][0].append(right)
                self.agreed[pool][1].append(asked)

    def figures(self) -> dict[str, Figure | None]:
        by_guide, by_judge = (intervals.mean([gain[i] for gain in self.judged]) for i in (0, 1))
        seen = by_guide is not None and by_guide.low > 0  # else there is no gain that could be a hack
        return {
            "length": intervals.correlation(np.array(self.moments).reshape(-1, 3)),
            "guidance": intervals.mean(self.gains),
            "off_policy": intervals.mean(self.nats),
            "similarity": intervals.mean(self.likeness),
            "provenance": self.probe.figure(),
            "unreadable": intervals.share(self.unreadable, self.asked) if self.by_endpoint else None,
            "hacking": by_judge if seen else None,
            "labels_guided": intervals.ratio(*self.agreed["own"]),
            "labels_unguided": intervals.ratio(*self.agreed["unguided"]),
        }


class PairFigures:
    """Adds up pairs, as rows of preferences/ with their texts, row by row."""

    def __init__(self) -> None:
        self.total = self.same = self.cut = self.echoes = self.judged = 0
        self.longer = self.agreed = 0.0
        self.probe = Probe()
        self.drifting: dict[str, array] = {name: array("d") for name in ("score", "tokens", "margin")}

    def add(self, row: Mapping[str, Any]) -> None:
        prompt, chosen, rejected = (text_of(row[name]) for name in ("prompt", "chosen", "rejected"))
        self.total += 1
        self.same += normal(chosen) == normal(rejected)
        self.cut += row["chosen_finish"] == "length"
        self.echoes += _echoes(prompt, chosen)
        self.longer += _win(row["chosen_tokens"], row["rejected_tokens"])
        self.probe.add(row["prompt_id"], chosen, rejected)
        if row.get("judge_score_chosen") is not None:
            self.judged += 1
            self.agreed += _win(row["judge_score_chosen"], row["judge_score_rejected"])
        columns = ("score_chosen", "chosen_tokens", "score_margin")
        for values, column in zip(self.drifting.values(), columns, strict=True):
            values.append(row[column])

    def figures(self) -> dict[str, Figure | None]:
        return {
            "degenerate": intervals.share(self.same, self.total),
            "truncation": intervals.share(self.cut, self.total),
            "echo": intervals.share(self.echoes, self.total),
            "labels": intervals.share(self.agreed, self.judged),
        }

    def shown(self) -> dict[str, Figure | None]:
        """Figures that no gate reads, to be read beside those of the gates."""
        return {
            "chosen is longer": intervals.share(self.longer, self.total),
            "surface tells chosen from rejected": self.probe.figure(),
        }

    def drift(self, before: "PairFigures") -> dict[str, Figure | None]:
        """The stability index of each column against the pairs of another night."""
        return {
            name: intervals.population_stability(np.array(before.drifting[name]), np.array(values))
            for name, values in self.drifting.items()
        }


def text_of(side: Any) -> str:
    """A prompt or a side as text; of messages their contents."""
    return side if isinstance(side, str) else "\n".join(message["content"] for message in side)


def kendall(scores: Sequence[float | None], others: Sequence[float]) -> float | None:
    """Kendall's tau-b of two scores of the same texts; None where one of them tells no two apart, or is not there."""
    from scipy.stats import kendalltau

    if None in scores or len(set(scores)) < 2 or len(set(others)) < 2:
        return None
    return float(kendalltau(scores, others).statistic)


def _moments(own: list[dict[str, Any]]) -> list[float]:
    """Sums of xy, xx and yy of the ranks of score and tokens about their means: Spearman's, within a prompt."""
    from scipy.stats import rankdata

    if len(own) < 2:
        return []
    x, y = (rankdata([c[name] for c in own]) for name in ("num_tokens", "score"))
    x, y = x - x.mean(), y - y.mean()
    return [float(x @ y), float(x @ x), float(y @ y)]


def _agreement(scores: list[float], judged: list[float]) -> tuple[float, int]:
    """Of any two texts that the score tells apart: how many the judge orders alike (a tie is half), and how many."""
    right, asked = 0.0, 0
    for i, j in combinations(range(len(scores)), 2):
        if scores[i] != scores[j]:
            above, below = (i, j) if scores[i] > scores[j] else (j, i)
            right, asked = right + _win(judged[above], judged[below]), asked + 1
    return right, asked


def _echoes(prompt: str, text: str) -> bool:
    """Whether a text holds one of the parts of ECHO characters that its prompt is cut into."""
    parts = (prompt[i : i + ECHO] for i in range(0, len(prompt) - ECHO + 1, ECHO))
    return any(part in text for part in parts)


def _win(a: float, b: float) -> float:
    return (a > b) + 0.5 * (a == b)


def _mean(completions: list[dict[str, Any]], name: str) -> float:
    return sum(c[name] for c in completions) / len(completions)


def _nats(completions: list[dict[str, Any]]) -> float:
    return sum(c["guided_logprob"] - c["logprob"] for c in completions) / len(completions)
