"""How often a reward model prefers the chosen response when it has seen only a part of both."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

LENGTHS = (1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280)
FRACTIONS = (0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass
class PrefixAccuracy:
    """Counts of pairs ranked rightly (a tie is half), by prefix length in tokens and by part of the longer response.

    A pair counts at a length only if its prefixes differ there, and at a length in tokens only up to its longer end.
    """

    right: Tensor = field(default_factory=lambda: torch.zeros(len(LENGTHS) + len(FRACTIONS), dtype=torch.float64))
    total: Tensor = field(default_factory=lambda: torch.zeros(len(LENGTHS) + len(FRACTIONS), dtype=torch.float64))

    def add(self, chosen: Tensor, rejected: Tensor, longer: Tensor, common: Tensor) -> None:
        """Rewards of all prefixes (B, T) on both sides; tokens (B,) of the longer response, and in common."""
        lengths = torch.tensor(LENGTHS, device=chosen.device).expand(len(chosen), -1)
        parts = torch.ceil(torch.tensor(FRACTIONS, device=chosen.device) * longer[:, None]).long()
        at = torch.cat([lengths, parts], dim=1)
        counts = (at <= longer[:, None]) & (at > common[:, None])
        index = (at - 1).clamp(0, chosen.shape[1] - 1)
        difference = chosen.gather(1, index) - rejected.gather(1, index)
        right = (difference > 0).double() + 0.5 * (difference == 0).double()
        self.right += (right * counts).sum(0).cpu()
        self.total += counts.double().sum(0).cpu()

    def summary(self) -> dict[str, dict[str, float]]:
        """`by_length` and `by_fraction`: accuracy where at least one pair counted; `pairs` counted in full."""
        accuracy = [r / t if t else None for r, t in zip(self.right.tolist(), self.total.tolist(), strict=True)]
        by_length, by_fraction = accuracy[: len(LENGTHS)], accuracy[len(LENGTHS) :]
        return {
            "by_length": {str(n): round(a, 4) for n, a in zip(LENGTHS, by_length, strict=True) if a is not None},
            "by_fraction": {str(f): round(a, 4) for f, a in zip(FRACTIONS, by_fraction, strict=True) if a is not None},
            "pairs": {"full": int(self.total[-1])},
        }
