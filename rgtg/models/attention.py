"""Attention as the slot cache needs it: grouped-query heads packed, and rows that round alike in any company."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from rgtg.models.shapes import round_up

ATTENTION = "packed_gqa"

# Attention must round a slot alike however long the longest slot of the batch is. How a product of matrices is summed
# up depends on its shape, in other ways with each instruction set. So on a CPU attention goes by blocks of positions,
# the same blocks for all slots, and a block in which a slot sees nothing has a weight of exactly zero. Two blocks have
# this length, then two twice this length, and so on: a long slot has few blocks and few positions behind its end.
BLOCK = 128

# On a GPU every view has a CUDA graph of its own.
GPU_VIEW_MULTIPLE = 256

# Under a mask the memory-efficient kernel goes through the positions in order, so that a hidden one at the end adds an
# exact zero. cuDNN would be torch's first choice on the newest cards: it splits the positions by how many there are,
# and builds a plan for every new shape.
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def view_length(length: int, device: torch.device) -> int:
    """Positions that attention looks at where the longest slot has `length` tokens."""
    if device.type == "cuda":
        return round_up(length, GPU_VIEW_MULTIPLE)
    return list(blocks(length))[-1].stop if length else 0


def blocks(length: int) -> Iterator[slice]:
    """The blocks in which the first `length` positions lie; the last one may go beyond."""
    begin = 0
    for i in itertools.count():
        if begin >= length:
            return
        yield slice(begin, begin := begin + BLOCK * (i // 2 + 1))


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of attention: 0 where `visible` (B, 1, T, S), of bool, and else minus infinity.

    Made once for all layers, in the dtype of the queries.
    """
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, -torch.inf)


def packed_gqa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Grouped-query attention with the query heads of a group packed into the query axis.

    query (B, Hq, T, D), key and value (B, Hkv, S, D), mask (B, 1, T, S) by `additive_mask`, or None for plain causal
    attention among T = S tokens. It reads each key and value once; repeating them for every query head, as the stock
    path does under a mask, is several times slower where a step attends to a long prefix.
    """
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ValueError("attention with soft-capping or sinks is not supported by the slot cache")
    batch, num_heads, num_queries, size = query.shape
    groups = num_heads // key.shape[1]
    if attention_mask is None:
        if groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        with sdpa_kernel(BACKENDS):
            out = scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling, is_causal=True)
        return out.transpose(1, 2).contiguous(), None
    packed = query.reshape(batch, key.shape[1], groups * num_queries, size)
    mask = attention_mask.repeat(1, 1, groups, 1) if num_queries > 1 and groups > 1 else attention_mask
    if packed.device.type == "cpu":
        out = _blockwise(packed, key, value, mask, scaling)
    else:
        with sdpa_kernel(BACKENDS):
            out = scaled_dot_product_attention(packed, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    # A GPU's kernels put heads next to each other in memory, a CPU's put queries: to split a dimension is a view of
    # either, and one copy makes the order that the model reads.
    out = out.unflatten(2, (groups, num_queries)).permute(0, 3, 1, 2, 4)
    return out.reshape(batch, num_queries, num_heads, size).contiguous(), None


def _blockwise(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """Attention of query (B, H, T, D) on a CPU, by blocks of the S keys, weighted by their sums of exponentials.

    mask (B, 1, T or 1, S) is additive; every query sees a key.
    """
    spans = list(blocks(key.shape[2]))
    # What scaled_dot_product_attention calls here, by the name that also gives the logarithm of the sum.
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    parts = [attend(query, key[:, :, at], value[:, :, at], attn_mask=mask[..., at], scale=scale) for at in spans]
    if len(parts) == 1:
        return parts[0][0]
    outs = [out for out, _ in parts]
    # Where a slot sees nothing of a block, the logarithm is minus infinity.
    logs = [log + mask[..., at].amax(-1) for (_, log), at in zip(parts, spans, strict=True)]
    # Written out: softmax over the first dimension rounds a slot by its place.
    top = torch.stack(logs).amax(0)
    weights = [(log - top).exp()[..., None] for log in logs]
    total = sum(weights[1:], start=weights[0])
    products = [out * weight for out, weight in zip(outs, weights, strict=True)]
    return (sum(products[1:], start=products[0]) / total).to(query.dtype)


# No mask function is registered beside it on purpose: transformers then passes a 4D mask through as it is, and builds
# none where none is given, which packed_gqa reads as plain causal attention.
AttentionInterface.register(ATTENTION, packed_gqa)
