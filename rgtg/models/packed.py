"""Linear layers on a CPU by oneDNN, with weights packed in the order in which it reads them.

oneDNN sums every output in the same order, whatever the position of the row and the instruction set (measured). MKL,
torch's default in float32, does not: with AVX2 the last two of 8 or 32 rows round unlike the others. In bfloat16 torch
would otherwise reorder the weights in every product: a quarter of the time of a step of eight rows. To measure both
again: `make test-avx2`, and `rgtg benchmark decoding --dtype bfloat16 --slots 8`.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class PackedLinear(nn.Module):
    """A linear layer for inference, from a weight (out, in), of which it keeps only a packed copy."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def pack(model: nn.Module) -> None:
    """Replace the linear layers of `model` by packed ones, where its device supports that."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) in (nn.Linear, Conv1D):
                setattr(parent, name, packed(child))


def packed(layer: Any) -> nn.Module:
    """A linear layer packed, or unchanged where the device does not support that."""
    weight = layer.weight.T if type(layer) is Conv1D else layer.weight
    if weight.device.type != "cpu" or not can_pack(weight.dtype):
        return layer
    return PackedLinear(weight, layer.bias)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether packing works on this CPU with this torch, found by trying: the operators are private to torch.

    Without them the layers stay as they are, and the rounding of a row may depend on its position in the batch.
    """
    with torch.inference_mode():
        try:
            PackedLinear(torch.zeros(32, 32, dtype=dtype), None)(torch.zeros(1, 32, dtype=dtype))
        except (AttributeError, RuntimeError):  # no such operator, other arguments, or no bfloat16
            return False
    return True
