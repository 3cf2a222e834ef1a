"""Tokenized pairs to tensors: one right-padded batch, the chosen responses first and then the rejected ones."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from rgtg.models.shapes import right_padded
from rgtg.preferences.tokenized import TokenizedPair


@dataclass(frozen=True)
class Batch:
    """B pairs: ids (2B, L), chosen before rejected; lengths and common prefixes in tokens, (B,) each."""

    input_ids: Tensor
    prompt_lengths: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    common: Tensor
    num_prefixes: int  # T, the length of the longest response

    def to(self, device: torch.device) -> "Batch":
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def collate(
    pairs: list[TokenizedPair], after_end: Literal["hold", "eos"], eos_id: int | None, width: int = 0
) -> Batch:
    """A batch of pairs. `eos` pads the shorter response of a pair with EOS to the length of the longer, as published.

    Rows are padded to `width` tokens, or to the longest one if it is longer.
    """
    chosen, rejected = [p.chosen_ids for p in pairs], [p.rejected_ids for p in pairs]
    if after_end == "eos" and eos_id is not None:
        longer = [max(len(c), len(r)) for c, r in zip(chosen, rejected, strict=True)]
        chosen = [c + [eos_id] * (n - len(c)) for c, n in zip(chosen, longer, strict=True)]
        rejected = [r + [eos_id] * (n - len(r)) for r, n in zip(rejected, longer, strict=True)]
    rows = [p.prompt_ids + ids for side in (chosen, rejected) for p, ids in zip(pairs, side, strict=True)]
    return Batch(
        input_ids=right_padded(rows, width),
        prompt_lengths=torch.tensor([len(p.prompt_ids) for p in pairs]),
        chosen_lengths=torch.tensor([len(ids) for ids in chosen]),
        rejected_lengths=torch.tensor([len(ids) for ids in rejected]),
        common=torch.tensor([p.common for p in pairs]),
        num_prefixes=max(map(len, chosen + rejected)),
    )
