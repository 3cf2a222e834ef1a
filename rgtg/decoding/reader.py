"""Reader: a causal model that reads every row of a batch token by token, each row at its own place."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from rgtg.decoding.prompts import Prompts
from rgtg.models.cache import SlotCache, additive_mask


class Rows:
    """The rows of a model's cache: how many tokens are in each, on the device and, so that nothing must wait for the
    device, as far as the host knows.
    """

    def __init__(self, model: Any, num_rows: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.cache = SlotCache(model.config, num_rows, dtype=dtype, device=device)
        self.prompts = Prompts(model, num_rows)
        self.lengths = torch.zeros(num_rows, dtype=torch.long, device=device)
        self.reached: dict[int, int] = {}  # of the rows at work, at most

    def start(self, row: int, prompt: list[int], coming: Iterable[list[int]] = ()) -> None:
        """A prompt becomes what is in `row`, and nothing behind it."""
        self.cache.write_row(row, self.prompts.get(prompt, coming) if prompt else None)
        self.rewind(row, len(prompt))

    def rewind(self, row: int, length: int) -> None:
        """Go back to where `length` tokens were in `row`."""
        self.lengths[row] = self.reached[row] = length

    def park(self, row: int) -> None:
        """Nothing runs in `row`: it is computed all the same, and must not grow."""
        self.lengths[row] = 0
        self.reached.pop(row, None)

    def look(self, new: int) -> tuple[int, int]:
        """Exactly once before each step, whose rows get `new` tokens: how many slots there are, and how many of them
        it looks at. Steps of the same shape launch the same kernels on the same memory.
        """
        self.cache.look(max(self.reached.values(), default=0) + new)
        for row in self.reached:
            self.reached[row] += 1
        return self.cache.length, self.cache.view


class Reader:
    """The model, its rows, and of each row which token is next.

    The last token of a prompt is not read when a row starts but waits in `pending`: the next step computes it together
    with all the other rows, so that no prompt needs an output of its own.
    """

    def __init__(self, model: Any, num_rows: int, output: Callable[[Any], Tensor]) -> None:
        """`output` picks what `step` gives from the model's own output, (B, 1, ...)."""
        self.model, self.output = model, output
        self.rows = Rows(model.base_model, num_rows, dtype=model.dtype, device=model.device)
        self.pending = torch.zeros(num_rows, dtype=torch.long, device=model.device)

    def reserve(self, length: int, keep: bool = True) -> None:
        """Make room for rows of `length` tokens; what is in them stays, or need not be kept."""
        self.rows.cache.reserve(length, keep)

    def start(self, row: int, prompt: list[int], coming: Iterable[list[int]] = ()) -> None:
        """Begin a prompt in `row`; some of the `coming` ones may be read along."""
        self.rows.start(row, prompt[:-1], (other[:-1] for other in coming))
        self.pending[row] = prompt[-1]

    def rewind(self, row: int, text: list[int]) -> None:
        """Go back to where `text` was in `row`, prompt and all."""
        self.rows.rewind(row, len(text) - 1)
        self.pending[row] = text[-1]

    def park(self, row: int) -> None:
        self.rows.park(row)

    def look(self) -> tuple[int, int]:
        return self.rows.look(1)

    def step(self) -> Tensor:
        """Every row reads its pending token; the model's output there (B, ...)."""
        cache, lengths = self.rows.cache, self.rows.lengths[:, None]
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
        """The tokens (B,) that come next; rows that do not run (B,) stay where they are."""
        self.pending.copy_(tokens)
        self.rows.lengths += running
