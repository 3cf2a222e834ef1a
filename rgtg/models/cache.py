"""SlotCache: a preallocated key-value cache with a slot for each sequence; slots have lengths of their own.

Slots are left-aligned: a token is stored at its position, so filling a slot is a plain copy, and no slot is padded for
another. Hugging Face modules use it unchanged: the caller always passes positions and masks.
"""

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

from rgtg.models.attention import view_length


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
        keys[owner.slot_index, :, owner.positions] = key_states.transpose(1, 2)
        values[owner.slot_index, :, owner.positions] = value_states.transpose(1, 2)
        return keys[:, :, : owner.view], values[:, :, : owner.view]

    # Masks and positions come with every call; nothing is derived from these values.
    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.view, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self.owner.length

    get_max_cache_shape = get_max_length  # its name before transformers 5.20


class SlotCache(Cache):
    """Keys and values of `num_slots` sequences: two tensors (layers, slots, KV heads, positions, head size).

    A call of the model writes to the positions given to `write_at` just before, and attends to those set by `look`.
    """

    def __init__(self, config: PreTrainedConfig, num_slots: int, *, dtype: torch.dtype, device: torch.device) -> None:
        heads = config.num_attention_heads
        self.shape = (
            config.num_hidden_layers,
            num_slots,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
        )
        self.keys = self.values = torch.empty(*self.shape[:3], 0, self.shape[3], dtype=dtype, device=device)
        self.slot_index = torch.arange(num_slots, device=device)[:, None]
        self.positions = self.slot_index
        self.view = 0
        super().__init__(layers=[_SlotLayer(self, i) for i in range(config.num_hidden_layers)])

    @property
    def length(self) -> int:
        """Positions of a slot."""
        return self.keys.shape[3]

    def view_of(self, length: int) -> int:
        return view_length(length, self.keys.device)

    def reserve(self, length: int, keep: bool = True) -> None:
        """Make every slot at least `length` positions long; the contents survive only with `keep`.

        While they are copied, the old keys (then the old values) stay in memory beside the new ones.
        """
        length = self.view_of(length)
        if length > self.length:
            if not keep:
                self.keys = self.values = self.keys[:, :, :, :0].clone()
            self.keys = self._grown(self.keys, length)
            self.values = self._grown(self.values, length)

    def look(self, length: int) -> None:
        """Later calls attend to as many positions as a slot of `length` tokens needs."""
        self.view = min(self.view_of(length), self.length)

    def write_at(self, positions: Tensor) -> None:
        """The next call writes token t of slot b, of tokens (B, T), to position `positions[b, t]`."""
        self.positions = positions

    def write_slot(self, slot: int, read: tuple[Tensor, Tensor] | None) -> None:
        """Set `slot` to keys and values (layers, KV heads, L, head size), or to nothing.

        The rest is zeros: masked positions are multiplied too, and zero times NaN is NaN.
        """
        self.keys[:, slot] = self.values[:, slot] = 0
        if read:
            length = read[0].shape[2]
            self.keys[:, slot, :, :length], self.values[:, slot, :, :length] = read

    def move_position(self, source: Tensor, target: Tensor) -> None:
        """Copy position `source[b]` to position `target[b]` in every slot b, in all layers at once."""
        slots = self.slot_index[:, 0]
        for tensor in (self.keys, self.values):
            tensor[:, slots, :, target] = tensor[:, slots, :, source]

    def _grown(self, tensor: Tensor, length: int) -> Tensor:
        grown = tensor.new_zeros(*self.shape[:3], length, self.shape[3])
        grown[:, :, :, : tensor.shape[3]] = tensor
        return grown
