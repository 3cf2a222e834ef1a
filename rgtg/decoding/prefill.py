"""Prefill: keys and values of prompts, computed before a slot starts, several prompts in one forward.

Rounding depends on the shape of a forward, and must not depend on the other prompts. So the length of a prompt alone
gives the shape: a short one is padded to the next length of SHORT, in a forward of as many prompts (some may be empty)
as have TOGETHER tokens; a longer one is read alone, chunk by chunk, so that a common beginning is read once.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rgtg.models.attention import additive_mask
from rgtg.models.shapes import right_padded, round_up

# Measured (`pargs`, prompts of 16 to 128 tokens, CPU ms a token): 11.1 without 64, 10.7 as it is, 12.7 with 32 too,
# 13.8 with 256 too. Again: `python -m pipelines.benchmarks.constants SHORT`.
SHORT = (64, 128)

# Measured (as SHORT): 11.1 with 128, 11.0 with 256, 10.4 with 512, 15.3 with 1,024. Again: the same with TOGETHER.
TOGETHER = 512

# Measured (`pargs`, prompts of 300 to 1,000 tokens, CPU ms a token): 155 with 64, 103 with 128, 96 with 256, 97 with
# 512. Again: `python -m pipelines.benchmarks.constants CHUNK`.
CHUNK = 256

# The last chunk is padded to a multiple: by arithmetic 16 tokens on average, and 8 shapes. Measured (as CHUNK): less
# than the noise of 20 % between 8 and 32. Again: the same with CHUNK_MULTIPLE.
CHUNK_MULTIPLE = 32

# Coming prompts that are looked at for the same forward: by arithmetic twice as many as the 8 of the shortest length.
AHEAD = 16

# Tokens of prompts that are kept beside the last one: by arithmetic as much memory as 2,048 tokens of one slot, which
# models/memory.py counts, for two system prompts of four chunks.
HELD = 2048


class KeysValues(NamedTuple):
    """Of a prompt of P tokens, (layers, KV heads, P, head size) each."""

    keys: Tensor
    values: Tensor


class PrefixCache:
    """What a model has read of prompts, the last ones used: for their other samples, and for prompts that begin with
    the same chunks, those of a system prompt.
    """

    def __init__(self, model: PreTrainedModel, num_rows: int) -> None:
        """At most `num_rows` prompts are read in one forward."""
        self.model = model
        self.together = {length: min(TOGETHER // length, num_rows) for length in SHORT}
        self.held: dict[tuple[int, ...], KeysValues] = {}  # the last one used is the last

    def get(self, prompt: list[int], coming: Iterable[list[int]] = ()) -> KeysValues:
        """Read a prompt of at least one token, unless it is held. The next of `coming` may be read along."""
        key = tuple(prompt)
        if key not in self.held:
            length = _padded(len(prompt))
            if length is None:
                self._hold(key, self._read_long(prompt))
            else:
                new = dict.fromkeys([key, *(tuple(p) for p in coming if p and _padded(len(p)) == length)])
                group = [p for p in new if p not in self.held][: self.together[length]]
                for other, read in zip(group, self._read_together(group, length), strict=True):
                    self._hold(other, read)
        found = self.held.pop(key)
        self._hold(key, found)
        return found

    def _hold(self, prompt: tuple[int, ...], read: KeysValues) -> None:
        self.held[prompt] = read
        while len(self.held) > 1 and sum(map(len, self.held)) - len(prompt) > HELD:
            del self.held[next(iter(self.held))]

    def _read_together(self, prompts: list[tuple[int, ...]], length: int) -> list[KeysValues]:
        """Padded on the right to `length`: no token of a prompt sees its padding, or another prompt."""
        empty = [()] * (self.together[length] - len(prompts))
        cache = self._forward([*prompts, *empty], length, DynamicCache())
        return [_row(cache, i, len(prompt)) for i, prompt in enumerate(prompts)]

    def _read_long(self, prompt: list[int]) -> KeysValues:
        start, cache = 0, DynamicCache()
        common, source = max(((_common(prompt, held), held) for held in self.held), default=(0, ()))
        if common:
            start, read = common, self.held[source]
            for layer, (keys, values) in enumerate(zip(read.keys, read.values, strict=True)):
                cache.update(keys[None, :, :start], values[None, :, :start], layer)
        for begin in range(start, len(prompt), CHUNK):
            chunk = tuple(prompt[begin : begin + CHUNK])
            self._forward([chunk], round_up(len(chunk), CHUNK_MULTIPLE), cache, begin)
        return _row(cache, 0, len(prompt))

    def _forward(
        self, prompts: list[tuple[int, ...]], length: int, cache: DynamicCache, start: int = 0
    ) -> DynamicCache:
        device = next(self.model.parameters()).device
        mask = None
        if start:  # none means causal among the new tokens
            column = torch.arange(start + length, device=device)
            mask = additive_mask((column <= column[start:, None])[None, None], self.model.dtype)
        # Learned positions may end before the padded length does.
        last = torch.tensor([[max(len(prompt), 1) - 1] for prompt in prompts], device=device)
        self.model(
            input_ids=right_padded(prompts, length).to(device),
            attention_mask=mask,
            position_ids=torch.arange(length, device=device).minimum(last) + start,
            past_key_values=cache,
            use_cache=True,
        )
        return cache


def _padded(length: int) -> int | None:
    """The length at which prompts of so many tokens are read together; None for those that are read alone."""
    return next((padded for padded in SHORT if length <= padded), None)


def _common(prompt: list[int], held: tuple[int, ...]) -> int:
    """Tokens in the chunks that both begin with, of long prompts; at least one token remains to be read."""
    common = 0
    while common + CHUNK < len(prompt) and held[common : common + CHUNK] == tuple(prompt[common : common + CHUNK]):
        common += CHUNK
    return common


def _row(cache: DynamicCache, row: int, length: int) -> KeysValues:
    keys, values = (
        torch.stack([getattr(layer, name)[row, :, :length] for layer in cache.layers]) for name in ("keys", "values")
    )
    return KeysValues(keys, values)
