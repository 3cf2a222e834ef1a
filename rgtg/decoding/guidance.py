"""How a method sees the candidates of a step: not at all, by scoring each one, or by the reward of every next token.

A guidance owns the reward model's state of every row and is driven by the engine: `start` when a row begins, `rewards`
for the candidates of a step, `commit` with what was chosen.
"""

from math import nan
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from rgtg.chat import decode_response
from rgtg.decoding.reader import Reader, Rows
from rgtg.decoding.request import Request
from rgtg.errors import RowError
from rgtg.models.ensemble import Combine, combine
from rgtg.models.reward import RewardModel
from rgtg.models.text_reward import TextReward


class Guidance(Protocol):
    calls: int  # prefixes that the reward model is asked for, a token
    on_device: bool  # whether a step can be launched without asking the device for anything

    def reserve(self, length: int, keep: bool = True) -> None:
        """Make room for rows of `length` tokens, prompt and completion; what is in them stays, or need not be kept."""

    def start(self, row: int, request: Request, coming: list[Request]) -> None:
        """Begin a request's prompt in `row`; those of some `coming` requests may be read along."""

    def rewind(self, row: int, request: Request, tokens: list[int]) -> None:
        """Go back to where the completion in `row` was `tokens`."""

    def park(self, row: int) -> None:
        """Nothing runs in `row`: it is computed all the same, and must not grow."""

    def look(self) -> tuple[int, ...]:
        """What decides the shape of the next step; exactly once before each."""

    def rewards(self, tokens: Tensor) -> Tensor:
        """Rewards (B, k) of the prefixes that end with the candidates (B, k) of all rows."""

    def commit(self, index: Tensor, running: Tensor) -> None:
        """Candidate `index` (B,) of each row becomes its next token; rows that do not run (B,) stay where they are."""

    def state(self) -> list[Tensor]:
        """What changes from step to step, beside caches."""


class CandidateGuidance:
    """The reward of each candidate, by ONE forward of the reward model over B rows.

    The k candidates of a row are siblings: k queries at the same position, each of which sees the row's prefix and
    itself. Their keys and values lie in scratch slots behind the prefix; committing one is the copy of its slot, exact
    because it depends on the prefix, the token and the position only. The cache is as large as the language model's.
    """

    on_device = True

    def __init__(self, reward_model: RewardModel, num_rows: int, k: int) -> None:
        self.reward_model, self.k, self.calls = reward_model, k, k
        weight = reward_model.head.weight
        self.rows = Rows(reward_model.backbone, num_rows, dtype=weight.dtype, device=weight.device)

    def reserve(self, length: int, keep: bool = True) -> None:
        self.rows.cache.reserve(length + self.k, keep)

    def start(self, row: int, request: Request, coming: list[Request]) -> None:
        self.rows.start(row, request.reward_prompt_ids, (other.reward_prompt_ids for other in coming))

    def rewind(self, row: int, request: Request, tokens: list[int]) -> None:
        self.rows.rewind(row, len(request.reward_prompt_ids) + len(tokens))

    def park(self, row: int) -> None:
        self.rows.park(row)

    def look(self) -> tuple[int, ...]:
        return self.rows.look(self.k)

    def rewards(self, tokens: Tensor) -> Tensor:
        k, cache, lengths = tokens.shape[1], self.rows.cache, self.rows.lengths[:, None]
        slots = lengths + torch.arange(k, device=tokens.device)
        column = torch.arange(cache.view, device=tokens.device)
        prefix, itself = column < lengths[..., None], column == slots[..., None]
        cache.write_at(slots)
        hidden = self.reward_model.backbone(
            input_ids=tokens,
            attention_mask=(prefix | itself)[:, None],
            position_ids=lengths.expand(-1, k),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return self.reward_model.score(hidden)

    def commit(self, index: Tensor, running: Tensor) -> None:
        self.rows.cache.move_slot(self.rows.lengths + index, self.rows.lengths)
        self.rows.lengths += running

    def state(self) -> list[Tensor]:
        return [self.rows.lengths]


class NextTokenGuidance:
    """The reward of every next token, by one forward of ONE token a row: the head of the reward model has a column for
    each token of the vocabulary (FaRMA, arXiv 2502.04517; GenARM, arXiv 2410.08193).

    Only the columns of the candidates are multiplied, except where the head gives log-probabilities.
    """

    calls, on_device = 1, True

    def __init__(self, reward_model: RewardModel, num_rows: int) -> None:
        self.reward_model = reward_model
        self.reader = Reader(reward_model.backbone, num_rows, lambda output: output.last_hidden_state)
        self.rows = torch.arange(num_rows, device=self.reader.pending.device)
        self.steps = torch.zeros_like(self.rows)  # tokens of each completion
        self.totals = torch.zeros(num_rows, 1, device=self.rows.device)  # the reward behind so many of them
        self.tokens = self.seen = self.totals  # of this step: candidates and their rewards

    def reserve(self, length: int, keep: bool = True) -> None:
        self.reader.reserve(length, keep)
        grow = self.reader.rows.cache.length + 1 - self.totals.shape[1]
        if grow > 0:
            self.totals = pad(self.totals, (0, grow))

    def start(self, row: int, request: Request, coming: list[Request]) -> None:
        self.reader.start(row, request.reward_prompt_ids, (other.reward_prompt_ids for other in coming))
        self.steps[row] = 0

    def rewind(self, row: int, request: Request, tokens: list[int]) -> None:
        self.reader.rewind(row, request.reward_prompt_ids + tokens)
        self.steps[row] = len(tokens)

    def park(self, row: int) -> None:
        self.reader.park(row)

    def look(self) -> tuple[int, ...]:
        return self.reader.look()

    def rewards(self, tokens: Tensor) -> Tensor:
        self.tokens = tokens
        self.seen = self.reward_model.next_token_rewards(self.reader.step(), tokens)
        if self.reward_model.adds_up:
            self.seen = self.totals[self.rows, self.steps][:, None] + self.seen
        return self.seen

    def commit(self, index: Tensor, running: Tensor) -> None:
        self.reader.advance(self.tokens.gather(1, index[:, None])[:, 0], running)
        self.steps += running
        total = self.totals[self.rows, self.steps]
        chosen = self.seen.gather(1, index[:, None])[:, 0]
        self.totals[self.rows, self.steps] = torch.where(running, chosen, total)

    def state(self) -> list[Tensor]:
        return [self.reader.rows.lengths, self.reader.pending, self.steps, self.totals]


class TextGuidance:
    """The reward of each candidate by reading the whole text anew: for any classifier, with any tokenizer.

    A row's k texts are one forward, whose shape is their own: k forwards of a text cost what they must, since a
    tokenizer may cut the same text differently with every character that follows.
    """

    on_device = False

    def __init__(self, reward: TextReward, tokenizer: PreTrainedTokenizerBase, num_rows: int, k: int) -> None:
        """`tokenizer` is the language model's."""
        self.reward, self.tokenizer, self.calls = reward, tokenizer, k
        self.requests: list[Request | None] = [None] * num_rows
        self.completions: list[list[int]] = [[] for _ in range(num_rows)]
        self.tokens = torch.zeros(num_rows, k, dtype=torch.long)  # the candidates of this step

    def reserve(self, length: int, keep: bool = True) -> None: ...

    def start(self, row: int, request: Request, coming: list[Request]) -> None:
        self.requests[row], self.completions[row] = request, []

    def rewind(self, row: int, request: Request, tokens: list[int]) -> None:
        self.completions[row] = list(tokens)

    def park(self, row: int) -> None:
        self.requests[row] = None

    def look(self) -> tuple[int, ...]:
        return ()

    def rewards(self, tokens: Tensor) -> Tensor:
        self.tokens = tokens.cpu()
        rewards = torch.zeros(self.tokens.shape)
        for row, request in enumerate(self.requests):
            if request:
                rewards[row] = torch.tensor(self._rewards(request, self.completions[row], self.tokens[row].tolist()))
        return rewards.to(tokens.device)

    def _rewards(self, request: Request, completion: list[int], candidates: list[int]) -> list[float]:
        """Of a text that a tokenizer fails on they are NaN, by which the row ends, and no other one."""
        try:
            texts = [completion_text(self.tokenizer, request, [*completion, token]) for token in candidates]
            return self.reward.forward_texts(texts)
        except RowError:
            return [nan] * len(candidates)

    def commit(self, index: Tensor, running: Tensor) -> None:
        chosen = self.tokens.gather(1, index.cpu()[:, None])[:, 0].tolist()
        for request, completion, token in zip(self.requests, self.completions, chosen, strict=True):
            if request:
                completion.append(token)

    def state(self) -> list[Tensor]:
        return []


class EnsembleGuidance:
    """Several guidances as one, whose rewards are combined."""

    def __init__(self, members: list[Guidance], how: Combine, width: float) -> None:
        self.members, self.how, self.width = members, how, width
        self.calls = sum(member.calls for member in members)
        self.on_device = all(member.on_device for member in members)

    def reserve(self, length: int, keep: bool = True) -> None:
        for member in self.members:
            member.reserve(length, keep)

    def start(self, row: int, request: Request, coming: list[Request]) -> None:
        for member in self.members:
            member.start(row, request, coming)

    def rewind(self, row: int, request: Request, tokens: list[int]) -> None:
        for member in self.members:
            member.rewind(row, request, tokens)

    def park(self, row: int) -> None:
        for member in self.members:
            member.park(row)

    def look(self) -> tuple[int, ...]:
        return tuple(number for member in self.members for number in member.look())

    def rewards(self, tokens: Tensor) -> Tensor:
        return combine(torch.stack([member.rewards(tokens) for member in self.members]), self.how, self.width)

    def commit(self, index: Tensor, running: Tensor) -> None:
        for member in self.members:
            member.commit(index, running)

    def state(self) -> list[Tensor]:
        return [tensor for member in self.members for tensor in member.state()]


def completion_text(tokenizer: PreTrainedTokenizerBase, request: Request, tokens: list[int]) -> str:
    """The prompt as its reward model reads it, and the completion; of a character that has only begun, nothing."""
    return request.reward_text + decode_response(tokenizer, request.prompt_ids, tokens).rstrip("\ufffd")
