"""Shapes that are rounded up, because the rounding of a matrix product depends on its shape; and padding to them."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Slots are one or a multiple of this: with an odd number of rows some libraries round a row by its position.
# Measured by bits under each instruction set: `make test-portable`.
SLOT_MULTIPLE = 8


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def right_padded(rows: Sequence[Sequence[int]], width: int = 0, fill: int = 0) -> Tensor:
    """Token ids as int64 (B, T) on the CPU, right-padded with `fill`; T is `width`, or the longest row if longer.

    What padding holds does not matter to a causal model, which never sees what is on the right of a token.
    """
    width = max(width, *map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.long)
