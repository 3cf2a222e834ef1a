"""Reader: a causal model that reads every row of a batch token by token, each row at its own place."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from rgtg.models.cache import VIEW_MULTIPLE, SlotCache, round_up

# Tokens of a forward of a prompt. A chunk has a shape of its own, and so its own rounding, whatever came before it:
# what one row has read, another may copy.
CHUNK = 256


class Prompts:
    """The prompts in the rows of a cache. Each is read once: samples of it copy it, and a prompt that begins with
    the same chunks (those of a system prompt) copies them.
    """

    def __init__(self, model: torch.nn.Module, cache: SlotCache) -> None:
        self.model, self.cache = model, cache
        self.held: list[list[int]] = [[] for _ in range(cache.num_rows)]

    def read(self, row: int, prompt: list[int]) -> None:
        """Write the keys and values of a prompt into `row` of the cache, and nothing behind them.

        One prompt a forward, padded on the right to a round length: the shape, and so the rounding, is the prompt's
        own. Its tokens never see the padding, and no later step sees what it leaves in the cache.
        """
        start, _, source = max((common, row == at, at) for at, common in self._common(prompt))
        self.cache.reserve(round_up(len(prompt), VIEW_MULTIPLE))
        if source != row:
            self.cache.copy_row(source, row, start)
        else:
            self.cache.clear_row(row, start)
        self.held[row] = []  # until it is whole: reading may fail
        for begin in range(start, len(prompt), CHUNK):
            self._forward(row, begin, prompt[begin : begin + CHUNK])
        self.held[row] = prompt

    def forget(self, rows: list[int]) -> None:
        """Something else is written where `rows` held a prompt."""
        for row in rows:
            self.held[row] = []

    def _common(self, prompt: list[int]) -> Iterator[tuple[int, int]]:
        """Rows that hold the beginning of a prompt, and how much of it: whole chunks, or all of it."""
        for row, held in enumerate(self.held):
            common = 0
            while common + CHUNK <= len(prompt) and held[common : common + CHUNK] == prompt[common : common + CHUNK]:
                common += CHUNK
            yield row, len(prompt) if held == prompt else common

    def _forward(self, row: int, start: int, tokens: list[int]) -> None:
        length, device = round_up(len(tokens), VIEW_MULTIPLE), self.cache.keys.device
        mask = None
        if start:  # none means causal among the new tokens
            column, query = (
                torch.arange(start + length, device=device),
                torch.arange(start, start + length, device=device),
            )
            mask = (column <= query[:, None])[None, None]
        # Learned positions may end before the round length does.
        positions = torch.arange(length, device=device).clamp(max=len(tokens) - 1)[None] + start
        self.cache.prefill(row, start)
        self.model(
            input_ids=torch.tensor([tokens + [0] * (length - len(tokens))], device=device),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )


class Reader:
    """The model, its cache, and of each row how many tokens are in it and which one is next.

    The last token of a prompt is not read when a row starts but waits in `pending`: the next step computes it together
    with all the other rows, so that no prompt needs an output of its own.
    """

    def __init__(self, model: Any, num_rows: int, output: Callable[[Any], Tensor]) -> None:
        """`output` picks what `step` gives from the model's own output, (B, 1, ...)."""
        self.model, self.output = model, output
        self.cache = SlotCache(model.config, num_rows, dtype=model.dtype, device=model.device)
        self.prompts = Prompts(model.base_model, self.cache)
        self.lengths = torch.zeros(num_rows, dtype=torch.long, device=model.device)
        self.pending = torch.zeros(num_rows, dtype=torch.long, device=model.device)

    def reserve(self, length: int) -> None:
        """Make room for rows of `length` tokens."""
        self.cache.reserve(length)

    def start(self, row: int, prompt: list[int]) -> None:
        """Begin a prompt in `row`."""
        self.prompts.read(row, prompt[:-1])
        self.rewind(row, len(prompt) - 1, prompt[-1])

    def rewind(self, row: int, length: int, pending: int) -> None:
        """Go back to where `row` had read `length` tokens and `pending` was next."""
        self.lengths[row], self.pending[row] = length, pending

    def park(self, rows: list[int]) -> None:
        """Nothing runs in `rows`: they are computed all the same, and must not grow."""
        self.prompts.forget(rows)
        self.lengths[rows] = 0

    def step(self) -> Tensor:
        """Every row reads its pending token; the model's output there (B, ...). `pending` is to be set anew."""
        lengths = self.lengths[:, None]
        view = self.cache.view_of(int(lengths.max()) + 1)
        column = torch.arange(view, device=lengths.device)
        self.cache.step(lengths, view)
        output = self.model(
            input_ids=self.pending[:, None],
            attention_mask=(column <= lengths)[:, None, None],
            position_ids=lengths,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.lengths += 1
        return self.output(output)[:, -1]
