"""Linear layers on a CPU as oneDNN multiplies, whose weights lie in the order in which it reads them.

It sums up every output in one order wherever the row stands, whatever the instruction set (measured). The float32
products that torch takes otherwise, MKL's, do not: with AVX2 the last two of 8 or 32 rows round unlike the others. In
bfloat16 it else brings the weights into that order in every product, which takes a quarter of a step of eight rows.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class PackedLinear(nn.Module):
    """A linear layer for inference, of a weight (out, in); its own copy of the weight is all that it keeps."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def pack(model: nn.Module) -> None:
    """Replace the linear layers of `model` where it is on a CPU that can."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) in (nn.Linear, Conv1D):
                setattr(parent, name, packed(child))


def packed(layer: Any) -> nn.Module:
    """The packed layer of a linear one, or the same where this machine cannot."""
    weight = layer.weight.T if type(layer) is Conv1D else layer.weight
    if weight.device.type != "cpu" or not can_pack(weight.dtype):
        return layer
    return PackedLinear(weight, layer.bias)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this machine and this torch can, by trying: the operators are torch's own, which it promises to nobody.

    Without them the layers stay as they are, and a row may round by its place among the others.
    """
    with torch.inference_mode():
        try:
            PackedLinear(torch.zeros(32, 32, dtype=dtype), None)(torch.zeros(1, 32, dtype=dtype))
        except (AttributeError, RuntimeError):  # no such operator; a CPU that has no bfloat16, or other arguments
            return False
    return True
