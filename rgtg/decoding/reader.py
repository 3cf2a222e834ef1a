"""Reader: a causal model that reads every row of a batch token by token, each row at its own place."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rgtg.models.cache import VIEW_MULTIPLE, SlotCache, round_up


class Reader:
    """The model, its cache, and of each row how many tokens are in it and which one is next.

    The last token of a prompt is not read when a row starts but waits in `pending`: the next step computes it together
    with all the other rows, so that no prompt needs an output of its own.
    """

    def __init__(self, model: Any, num_rows: int, output: Callable[[Any], Tensor]) -> None:
        """`output` picks what `step` gives from the model's own output, (B, 1, ...)."""
        self.model, self.output = model, output
        self.cache = SlotCache(model.config, num_rows, dtype=model.dtype, device=model.device)
        self.lengths = torch.zeros(num_rows, dtype=torch.long, device=model.device)
        self.pending = torch.zeros(num_rows, dtype=torch.long, device=model.device)

    def reserve(self, length: int) -> None:
        """Make room for rows of `length` tokens."""
        self.cache.reserve(length)

    def start(self, row: int, prompt: list[int]) -> None:
        """Begin a prompt in `row`."""
        prefill(self.model.base_model, self.cache, row, prompt[:-1])
        self.rewind(row, len(prompt) - 1, prompt[-1])

    def fork(self, source: int, row: int, prompt: list[int]) -> None:
        """Begin in `row` a prompt that row `source` has read."""
        self.cache.copy_row(source, row, len(prompt) - 1)
        self.rewind(row, len(prompt) - 1, prompt[-1])

    def rewind(self, row: int, length: int, pending: int) -> None:
        """Go back to where `row` had read `length` tokens and `pending` was next."""
        self.lengths[row], self.pending[row] = length, pending

    def park(self, rows: list[int]) -> None:
        """Nothing runs in `rows`: they are computed all the same, and must not grow."""
        self.lengths[rows] = 0

    def step(self) -> Tensor:
        """Every row reads its pending token; the model's output there (B, ...). `pending` is to be set anew."""
        lengths = self.lengths[:, None]
        view = round_up(int(lengths.max()) + 1, VIEW_MULTIPLE)
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


def prefill(model: torch.nn.Module, cache: SlotCache, row: int, prompt: list[int]) -> None:
    """Write the keys and values of a prompt into `row` of the cache, and nothing behind them.

    One prompt a forward, padded on the right to a round length: the shape, and so the rounding, is the prompt's own.
    Its tokens never see the padding, and no later step sees what it leaves in the cache.
    """
    cache.clear_row(row)
    if not prompt:
        return
    length = round_up(len(prompt), VIEW_MULTIPLE)
    cache.reserve(length)
    cache.prefill(row)
    ids = torch.tensor([prompt + [0] * (length - len(prompt))], device=cache.keys.device)
    # Learned positions may end before the round length does.
    positions = torch.arange(length, device=ids.device).clamp(max=len(prompt) - 1)[None]
    model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
