"""How a method sees the candidates of a step: not at all, or by the reward of each one.

A guidance owns the reward model's state of every row (its cache and its lengths) and is driven by the engine:
`start` when a row begins, `rewards` for the candidates of a step, `commit` with what was chosen.
"""

from typing import Protocol

import torch
from torch import Tensor

from rgtg.models.cache import VIEW_MULTIPLE, SlotCache, round_up
from rgtg.models.reward import RewardModel


class Guidance(Protocol):
    def reserve(self, length: int) -> None:
        """Make room for rows of `length` tokens, prompt and completion."""

    def start(self, row: int, prompt: list[int]) -> None:
        """Begin a prompt (token ids of the reward model) in `row`."""

    def fork(self, source: int, target: int, length: int) -> None:
        """Begin in row `target` the prompt of `length` tokens that row `source` holds."""

    def park(self, rows: list[int]) -> None:
        """Nothing runs in `rows`: they are computed all the same, and must not grow."""

    def rewards(self, tokens: Tensor) -> Tensor:
        """Rewards (B, k) of the candidates (B, k) of all rows."""

    def commit(self, index: Tensor) -> None:
        """Candidate `index` (B,) of each row becomes its next token."""


class CandidateGuidance:
    """The reward of each candidate, by ONE forward of the reward model over B rows.

    The k candidates of a row are siblings: k queries at the same position, each of which sees the row's prefix and
    itself. Their keys and values lie in scratch slots behind the prefix; committing one is the copy of its slot, exact
    because it depends on the prefix, the token and the position only. The cache is as large as the language model's.
    """

    def __init__(self, reward_model: RewardModel, num_rows: int, k: int) -> None:
        self.reward_model, self.k = reward_model, k
        weight = reward_model.head.weight
        self.cache = SlotCache(reward_model.backbone.config, num_rows, dtype=weight.dtype, device=weight.device)
        self.lengths = torch.zeros(num_rows, dtype=torch.long, device=weight.device)  # tokens of each row's prefix

    def reserve(self, length: int) -> None:
        self.cache.reserve(length + self.k)

    def start(self, row: int, prompt: list[int]) -> None:
        prefill(self.reward_model.backbone, self.cache, row, prompt)
        self.lengths[row] = len(prompt)

    def fork(self, source: int, target: int, length: int) -> None:
        self.cache.copy_row(source, target, length)
        self.lengths[target] = length

    def park(self, rows: list[int]) -> None:
        self.lengths[rows] = 0

    def rewards(self, tokens: Tensor) -> Tensor:
        k, lengths = tokens.shape[1], self.lengths[:, None]
        view = round_up(int(lengths.max()) + k, VIEW_MULTIPLE)
        slots = lengths + torch.arange(k, device=tokens.device)
        column = torch.arange(view, device=tokens.device)
        prefix, itself = column < lengths[..., None], column == slots[..., None]
        self.cache.step(slots, view)
        hidden = self.reward_model.backbone(
            input_ids=tokens,
            attention_mask=(prefix | itself)[:, None],
            position_ids=lengths.expand(-1, k),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        return self.reward_model.score(hidden)

    def commit(self, index: Tensor) -> None:
        self.cache.move_slot(self.lengths + index, self.lengths)
        self.lengths += 1


def prefill(model: torch.nn.Module, cache: SlotCache, row: int, prompt: list[int]) -> None:
    """Write the keys and values of a prompt into `row` of the cache.

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
