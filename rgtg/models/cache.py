"""SlotCache: a preallocated key-value cache with one row a sequence and a length of its own for every row.

Rows are left-aligned: *slot index = token position*, so filling a row is a plain copy and no row ever waits for the
padding of another. Hugging Face modules use it unchanged: positions and masks are always passed by the caller.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

ATTENTION = "packed_gqa"

# A row must round alike however far the longest row of its company makes attention look. How a product of matrices is
# summed up depends on its shape, in other ways with each instruction set. So on a CPU attention goes by blocks of
# slots that begin and end at the same places for all rows, and a block that a row sees nothing of counts exactly zero.
# The first two have this length, the next two twice this length, and so on: a long row has few of them, and few slots
# behind its end.
BLOCK = 128

# On a GPU every view has a CUDA graph of its own.
GPU_VIEW_MULTIPLE = 256

# Under a mask the memory-efficient kernel goes through the slots in order, so that a hidden one at the end adds an
# exact zero. cuDNN would be torch's first choice on the newest cards: it splits the slots by how many there are, and
# builds a plan for every new shape.
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

# The rounding of matrix products depends on their shape, so the engine never changes a shape. It depends on the place
# of a row too where rows are an odd number, in some libraries, so they are always a multiple of this, or one.
ROW_MULTIPLE = 8


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def view_length(length: int, device: torch.device) -> int:
    """Slots to look at where the longest row has `length` tokens: shorter rows round as they would by themselves."""
    if device.type == "cuda":
        return round_up(length, GPU_VIEW_MULTIPLE)
    return list(blocks(length))[-1].stop if length else 0


def blocks(length: int) -> Iterator[slice]:
    """The blocks in which the first `length` slots lie; the last one may go beyond."""
    begin = 0
    for i in itertools.count():
        if begin >= length:
            return
        yield slice(begin, begin := begin + BLOCK * (i // 2 + 1))


class _SlotLayer(CacheLayerMixin):
    """One layer's view of its owner's tensors."""

    is_compileable = True

    def __init__(self, owner: "SlotCache", index: int) -> None:
        super().__init__()
        self.owner, self.index = owner, index
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        owner = self.owner
        keys, values = owner.keys[self.index], owner.values[self.index]
        keys[owner.row_index, :, owner.slots] = key_states.transpose(1, 2)
        values[owner.row_index, :, owner.slots] = value_states.transpose(1, 2)
        return keys[:, :, : owner.view], values[:, :, : owner.view]

    # Masks and positions are passed with every call, so nothing may be derived from these.
    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.view, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self.owner.length

    get_max_cache_shape = get_max_length  # its name before transformers 5.20


class SlotCache(Cache):
    """Keys and values of `num_rows` sequences: two tensors (layers, rows, KV heads, slots, head size).

    Every call of the model writes to the slots that `write_at` named just before, and sees as many as `look` said.
    """

    def __init__(self, config: PreTrainedConfig, num_rows: int, *, dtype: torch.dtype, device: torch.device) -> None:
        heads = config.num_attention_heads
        self.shape = (
            config.num_hidden_layers,
            num_rows,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
        )
        self.keys = self.values = torch.empty(*self.shape[:3], 0, self.shape[3], dtype=dtype, device=device)
        self.row_index = torch.arange(num_rows, device=device)[:, None]
        self.slots = self.row_index
        self.view = 0
        super().__init__(layers=[_SlotLayer(self, i) for i in range(config.num_hidden_layers)])

    @property
    def length(self) -> int:
        """Slots of a row."""
        return self.keys.shape[3]

    def view_of(self, length: int) -> int:
        return view_length(length, self.keys.device)

    def reserve(self, length: int, keep: bool = True) -> None:
        """Make every row at least `length` slots long. What is in them stays, or need not be kept.

        Keeping it takes as much memory again as the keys or the values had, until they are copied.
        """
        length = self.view_of(length)
        if length > self.length:
            if not keep:
                self.keys = self.values = self.keys[:, :, :, :0].clone()
            self.keys = self._grown(self.keys, length)
            self.values = self._grown(self.values, length)

    def look(self, length: int) -> None:
        """Later calls see as many slots as rows of up to `length` tokens need."""
        self.view = min(self.view_of(length), self.length)

    def write_at(self, slots: Tensor) -> None:
        """The next call writes token t of row b, of tokens (B, T), to slot `slots[b, t]`."""
        self.slots = slots

    def write_row(self, row: int, read: tuple[Tensor, Tensor] | None) -> None:
        """Keys and values (layers, KV heads, L, head size) become what is in `row`, or nothing does.

        Behind them are zeros. A slot that no query may see still counts: zero times NaN is NaN.
        """
        self.keys[:, row] = self.values[:, row] = 0
        if read:
            length = read[0].shape[2]
            self.keys[:, row, :, :length], self.values[:, row, :, :length] = read

    def move_slot(self, source: Tensor, target: Tensor) -> None:
        """Copy slot `source[b]` to slot `target[b]` in every row b, in all layers at once."""
        rows = self.row_index[:, 0]
        for tensor in (self.keys, self.values):
            tensor[:, rows, :, target] = tensor[:, rows, :, source]

    def _grown(self, tensor: Tensor, length: int) -> Tensor:
        grown = tensor.new_zeros(*self.shape[:3], length, self.shape[3])
        grown[:, :, :, : tensor.shape[3]] = tensor
        return grown


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
    outs, logs = [], []
    for at in blocks(key.shape[2]):
        # What scaled_dot_product_attention calls here, by the name that also gives the logarithm of the sum.
        out, log = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key[:, :, at], value[:, :, at], attn_mask=mask[..., at], scale=scale
        )
        outs.append(out)
        logs.append(log + mask[..., at].amax(-1))
    if len(outs) == 1:
        return outs[0]
    # Written out: softmax over the first dimension rounds a row by its place.
    top = torch.stack(logs).amax(0)
    weights = [(log - top).exp()[..., None] for log in logs]
    total = sum(weights[1:], start=weights[0])
    products = [out * weight for out, weight in zip(outs, weights, strict=True)]
    return (sum(products[1:], start=products[0]) / total).to(query.dtype)


# No mask function is registered beside it on purpose: transformers then passes a 4D mask through as it is, and builds
# none where none is given, which packed_gqa reads as plain causal attention.
AttentionInterface.register(ATTENTION, packed_gqa)
