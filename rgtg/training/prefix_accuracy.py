"""How often a reward model prefers the chosen response when it has seen only a part of both, and by which score."""

from math import sqrt
from typing import Any

import torch
from torch import Tensor

from rgtg.text_score import STEADIEST, WAYS, prefix_scores

LENGTHS = (1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280)
FRACTIONS = (0.1, 0.25, 0.5, 0.75, 1.0)


class PrefixAccuracy:
    """Counts of pairs ranked rightly (a tie is half), by prefix length in tokens and by part of the longer response.

    A prefix is ranked by its score, as a text of its own is. A pair counts at a length only if its prefixes differ
    there, and at a length in tokens only up to its longer end.
    """

    def __init__(self, ways: tuple[str, ...] = WAYS) -> None:
        """`ways` are those in which rewards become scores: each is counted."""
        self.ways = ways
        self.right = torch.zeros(len(ways), len(LENGTHS) + len(FRACTIONS), dtype=torch.float64)
        self.total = torch.zeros(len(LENGTHS) + len(FRACTIONS), dtype=torch.float64)

    def add(
        self, chosen: Tensor, rejected: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor, common: Tensor
    ) -> None:
        """Rewards of all prefixes (B, T) on both sides; tokens (B,) of each response, and in common."""
        longer = torch.maximum(chosen_lengths, rejected_lengths)
        lengths = torch.tensor(LENGTHS, device=chosen.device).expand(len(chosen), -1)
        parts = torch.ceil(torch.tensor(FRACTIONS, device=chosen.device) * longer[:, None]).long()
        at = torch.cat([lengths, parts], dim=1)
        counts = (at <= longer[:, None]) & (at > common[:, None])

        def scores(rewards: Tensor, own: Tensor, way: str) -> Tensor:
            """(B, N); a response that has ended keeps its score."""
            return prefix_scores(rewards, way).gather(1, torch.minimum(at, own[:, None]) - 1)

        for right, way in zip(self.right, self.ways, strict=True):
            difference = scores(chosen, chosen_lengths, way) - scores(rejected, rejected_lengths, way)
            ranked = (difference > 0).double() + 0.5 * (difference == 0).double()
            right += (ranked * counts).sum(0).cpu()
        self.total += counts.double().sum(0).cpu()

    @property
    def best(self) -> str:
        """The way that ranks most whole responses rightly; of those within a standard error of it, the steadiest.

        The one-standard-error rule (Breiman et al. 1984): the differences of a few hundred pairs are mostly noise.
        """
        n = float(self.total[-1])
        if not n:
            return self.ways[0]
        shares = dict(zip(self.ways, (self.right[:, -1] / n).tolist(), strict=True))
        best = max(shares.values())
        enough = best - sqrt(best * (1 - best) / n)
        kept = [way for way, share in shares.items() if share >= enough]
        return min(kept, key=lambda way: STEADIEST.index(way) if way in STEADIEST else len(STEADIEST))

    def summary(self, way: str | None = None) -> dict[str, Any]:
        """`by_length` and `by_fraction`: accuracy by the score `way`, where at least one pair counted; `by_score`: of
        whole responses, in every way; `score`: the way, by default `best`; `pairs` counted in full.
        """
        way = way or self.best
        right = self.right / self.total
        accuracy = right[self.ways.index(way)].tolist()
        by_length, by_fraction = accuracy[: len(LENGTHS)], accuracy[len(LENGTHS) :]
        return {
            "by_length": _where_counted(LENGTHS, by_length),
            "by_fraction": _where_counted(FRACTIONS, by_fraction),
            "by_score": _where_counted(self.ways, right[:, -1].tolist()),
            "score": way,
            "pairs": {"full": int(self.total[-1])},
        }


def _where_counted(names: tuple[Any, ...], accuracies: list[float]) -> dict[str, float]:
    return {str(n): round(a, 4) for n, a in zip(names, accuracies, strict=True) if a == a}  # none counted: NaN
