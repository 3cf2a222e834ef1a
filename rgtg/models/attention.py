"""Batch-invariant attention for the slot cache, with grouped-query heads packed into the query axis.

The rounding of a slot must not depend on the longest slot of the batch, but the order in which a matrix product is
summed depends on its shape, differently with each instruction set. So on a CPU attention goes by blocks of positions,
the same for all slots, and a block in which a slot sees nothing has a weight of exactly zero.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from rgtg.models.shapes import round_up

ATTENTION = "packed_gqa"

# Two blocks have this length, the next two twice this length, and so on: a long slot has few blocks and few positions
# after its end. Measured (`pargs`, 8 slots, CPU ms a token): 6.0 with 32 and 64, 5.3 with 128 and 256, 5.5 with 512.
# Again: `python -m pipelines.benchmarks.constants BLOCK`.
BLOCK = 128

# On a GPU every view has its own CUDA graph: by arithmetic 16 graphs for 4,096 positions, and at most 255 masked
# positions a slot. Not measured for want of a GPU: `python -m pipelines.benchmarks.constants GPU_VIEW_MULTIPLE`.
GPU_VIEW_MULTIPLE = 256

# Under a mask the memory-efficient kernel goes through the positions in order, so that masked ones at the end add an
# exact zero. cuDNN, torch's first choice on the newest GPUs, splits the positions by their number, and builds a plan
# for every new shape. Measured by bits: `make test-gpu`.
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def view_length(length: int, device: torch.device) -> int:
    """Positions that attention reads where the longest slot has `length` tokens."""
    if device.type == "cuda":
        return round_up(length, GPU_VIEW_MULTIPLE)
    return list(blocks(length))[-1].stop if length else 0


def blocks(length: int) -> Iterator[slice]:
    """The blocks that cover the first `length` positions; the last one may extend beyond."""
    begin = 0
    for i in itertools.count():
        if begin >= length:
            return
        yield slice(begin, begin := begin + BLOCK * (i // 2 + 1))


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask to add to attention scores: 0 where `visible` (bool, (B, 1, T, S)), else minus infinity.

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
    attention among T = S tokens. Each key and value is read once; repeating them for every query head, as transformers
    does under a mask, is several times slower where a step attends to a long prefix.
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
    # In memory, kernels of a GPU put heads next to each other, those of a CPU queries. Splitting a dimension is a view
    # of either, and one copy makes the order that the model reads.
    out = out.unflatten(2, (groups, num_queries)).permute(0, 3, 1, 2, 4)
    return out.reshape(batch, num_queries, num_heads, size).contiguous(), None


def _blockwise(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """Attention of query (B, H, T, D) on a CPU by blocks of the S keys, weighted by their sums of exponentials.

    mask (B, 1, T or 1, S) is additive; every query sees a key.
    """
    spans = list(blocks(key.shape[2]))
    # The kernel behind scaled_dot_product_attention, which also returns the logarithm of the sum.
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    parts = [attend(query, key[:, :, at], value[:, :, at], attn_mask=mask[..., at], scale=scale) for at in spans]
    if len(parts) == 1:
        return parts[0][0]
    outs = [out for out, _ in parts]
    # The logarithm is minus infinity where a slot sees nothing of a block.
    logs = [log + mask[..., at].amax(-1) for (_, log), at in zip(parts, spans, strict=True)]
    # Written out, since softmax over the first dimension rounds a slot by its position.
    top = torch.stack(logs).amax(0)
    weights = [(log - top).exp()[..., None] for log in logs]
    total = sum(weights[1:], start=weights[0])
    products = [out * weight for out, weight in zip(outs, weights, strict=True)]
    return (sum(products[1:], start=products[0]) / total).to(query.dtype)


# No mask function is registered beside it on purpose: transformers then passes a 4D mask through as it is, and builds
# none where none is given, which packed_gqa reads as plain causal attention.
AttentionInterface.register(ATTENTION, packed_gqa)
