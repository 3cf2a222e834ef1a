"""BatchedModel: a causal model that reads one token a step in every slot, each slot at its own position."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from rgtg.decoding.prefill import PrefixCache
from rgtg.models.attention import additive_mask
from rgtg.models.cache import SlotCache


class CacheSlots:
    """The slots of a model's cache: how many tokens are in each, on the device and, so that nothing must wait for the
    device, as far as the host knows.
    """

    def __init__(self, model: Any, num_slots: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.cache = SlotCache(model.config, num_slots, dtype=dtype, device=device)
        self.prefixes = PrefixCache(model, num_slots)
        self.lengths = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.reached: dict[int, int] = {}  # of the slots at work, at most

    def start(self, slot: int, prompt: list[int], coming: Iterable[list[int]] = ()) -> None:
        """A prompt becomes what is in `slot`, and nothing behind it."""
        self.cache.write_slot(slot, self.prefixes.get(prompt, coming) if prompt else None)
        self.rewind(slot, len(prompt))

    def rewind(self, slot: int, length: int) -> None:
        """Go back to where `length` tokens were in `slot`."""
        self.lengths[slot] = self.reached[slot] = length

    def release(self, slot: int) -> None:
        """Nothing runs in `slot`: it is computed all the same, and must not grow."""
        self.lengths[slot] = 0
        self.reached.pop(slot, None)

    def begin_step(self, new: int) -> tuple[int, int]:
        """Exactly once before each step, whose slots get `new` tokens: how many slots there are, and how many of them
        it looks at. Steps of the same shape launch the same kernels on the same memory.
        """
        self.cache.look(max(self.reached.values(), default=0) + new)
        for slot in self.reached:
            self.reached[slot] += 1
        return self.cache.length, self.cache.view


class BatchedModel:
    """A model, the slots of its cache, and the next token of each slot.

    The last token of a prompt is not prefilled but waits in `pending`: the next step computes it together with all the
    other slots, so that no prompt needs an output of its own.
    """

    def __init__(self, model: Any, num_slots: int, output: Callable[[Any], Tensor]) -> None:
        """`output` picks what `step` gives from the model's own output, (B, 1, ...)."""
        self.model, self.output = model, output
        self.slots = CacheSlots(model.base_model, num_slots, dtype=model.dtype, device=model.device)
        self.pending = torch.zeros(num_slots, dtype=torch.long, device=model.device)

    def reserve(self, length: int, keep: bool = True) -> None:
        """Make room for slots of `length` tokens; what is in them stays, or need not be kept."""
        self.slots.cache.reserve(length, keep)

    def start(self, slot: int, prompt: list[int], coming: Iterable[list[int]] = ()) -> None:
        """Begin a prompt in `slot`; some of the `coming` ones may be read along."""
        self.slots.start(slot, prompt[:-1], (other[:-1] for other in coming))
        self.pending[slot] = prompt[-1]

    def rewind(self, slot: int, text: list[int]) -> None:
        """Go back to where `text` was in `slot`, prompt and all."""
        self.slots.rewind(slot, len(text) - 1)
        self.pending[slot] = text[-1]

    def release(self, slot: int) -> None:
        self.slots.release(slot)

    def begin_step(self) -> tuple[int, int]:
        return self.slots.begin_step(1)

    def step(self) -> Tensor:
        """Every slot reads its pending token; the model's output there (B, ...)."""
        cache, lengths = self.slots.cache, self.slots.lengths[:, None]
        column = torch.arange(cache.view, device=lengths.device)
        cache.write_at(lengths)
        output = self.model(
            input_ids=self.pending[:, None],
            attention_mask=additive_mask((column <= lengths)[:, None, None], cache.keys.dtype),
            position_ids=lengths,
            past_key_values=cache,
            use_cache=True,
        )
        return self.output(output)[:, -1]

    def advance(self, tokens: Tensor, running: Tensor) -> None:
        """The tokens (B,) that come next; slots that do not run (B,) stay where they are."""
        self.pending.copy_(tokens)
        self.slots.lengths += running
