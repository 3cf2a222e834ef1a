"""How a method sees the candidates of a step: not at all, by scoring each one, or by the reward of every next token.

A guidance owns the reward model's state of every slot. The engine drives it: `start` when a slot begins, `rewards` for
the candidates of a step, `commit` with what was chosen.
"""

from math import nan
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from rgtg.chat import decode_response
from rgtg.decoding.batched_model import BatchedModel, CacheSlots
from rgtg.decoding.request import Request
from rgtg.errors import RowError
from rgtg.models.attention import additive_mask
from rgtg.models.ensemble import Combine, combine
from rgtg.models.reward import RewardModel
from rgtg.models.text_reward import TextReward


class Guidance(Protocol):
    calls: int  # prefixes that the reward model is asked for, a token
    on_device: bool  # whether a step can be launched without asking the device for anything

    def reserve(self, length: int, keep: bool = True) -> None:
        """Make room for `length` tokens a slot, prompt and completion. What is in the slots stays only if `keep`."""

    def start(self, slot: int, request: Request, coming: list[Request]) -> None:
        """Begin a request's prompt in `slot`; those of some `coming` requests may be read along."""

    def rewind(self, slot: int, request: Request, tokens: list[int]) -> None:
        """Go back to where the completion in `slot` was `tokens`."""

    def release(self, slot: int) -> None:
        """Nothing runs in `slot`: it is computed all the same, and must not grow."""

    def begin_step(self) -> tuple[int, ...]:
        """What decides the shape of the next step; exactly once before each."""

    def rewards(self, tokens: Tensor) -> Tensor:
        """Rewards (B, k) of the prefixes that end with the candidates (B, k) of all slots."""

    def commit(self, index: Tensor, running: Tensor) -> None:
        """Candidate `index` (B,) of each slot becomes its next token, in the slots that are `running` (B,)."""

    def state(self) -> list[Tensor]:
        """What changes from step to step, beside caches."""


class CandidateGuidance:
    """The reward of each candidate, by ONE forward of the reward model over B slots.

    The k candidates of a slot are siblings: k queries at the same position, each of which sees the slot's prefix and
    itself. Their keys and values lie in scratch slots behind the prefix; committing one is the copy of its slot, exact
    because it depends on the prefix, the token and the position only. The cache is as large as the language model's.
    """

    on_device = True

    def __init__(self, reward_model: RewardModel, num_slots: int, k: int) -> None:
        self.reward_model, self.k, self.calls = reward_model, k, k
        weight = reward_model.head.weight
        self.slots = CacheSlots(reward_model.backbone, num_slots, dtype=weight.dtype, device=weight.device)

    def reserve(self, length: int, keep: bool = True) -> None:
        self.slots.cache.reserve(length + self.k, keep)

    def start(self, slot: int, request: Request, coming: list[Request]) -> None:
        self.slots.start(slot, request.reward_prompt_ids, (other.reward_prompt_ids for other in coming))

    def rewind(self, slot: int, request: Request, tokens: list[int]) -> None:
        self.slots.rewind(slot, len(request.reward_prompt_ids) + len(tokens))

    def release(self, slot: int) -> None:
        self.slots.release(slot)

    def begin_step(self) -> tuple[int, ...]:
        return self.slots.begin_step(self.k)

    def rewards(self, tokens: Tensor) -> Tensor:
        k, cache, lengths = tokens.shape[1], self.slots.cache, self.slots.lengths[:, None]
        slots = lengths + torch.arange(k, device=tokens.device)
        column = torch.arange(cache.view, device=tokens.device)
        prefix, itself = column < lengths[..., None], column == slots[..., None]
        cache.write_at(slots)
        hidden = self.reward_model.backbone(
            input_ids=tokens,
            attention_mask=additive_mask((prefix | itself)[:, None], cache.keys.dtype),
            position_ids=lengths.expand(-1, k),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return self.reward_model.score(hidden)

    def commit(self, index: Tensor, running: Tensor) -> None:
        self.slots.cache.move_position(self.slots.lengths + index, self.slots.lengths)
        self.slots.lengths += running

    def state(self) -> list[Tensor]:
        return [self.slots.lengths]


class NextTokenGuidance:
    """The reward of every next token, by one forward of ONE token a slot.

    The head of the reward model has a column for each token of the vocabulary (FaRMA, arXiv 2502.04517; GenARM, arXiv
    2410.08193).

    Only the columns of the candidates are multiplied, except where the head gives log-probabilities.
    """

    calls, on_device = 1, True

    def __init__(self, reward_model: RewardModel, num_slots: int) -> None:
        self.reward_model = reward_model
        self.model = BatchedModel(reward_model.backbone, num_slots, lambda output: output.last_hidden_state)
        self.index = torch.arange(num_slots, device=self.model.pending.device)
        self.steps = torch.zeros_like(self.index)  # tokens of each completion
        self.totals = torch.zeros(num_slots, 1, device=self.index.device)  # the reward behind so many of them
        self.tokens = self.seen = self.totals  # of this step: candidates and their rewards

    def reserve(self, length: int, keep: bool = True) -> None:
        self.model.reserve(length, keep)
        grow = self.model.slots.cache.length + 1 - self.totals.shape[1]
        if grow > 0:
            self.totals = pad(self.totals, (0, grow))

    def start(self, slot: int, request: Request, coming: list[Request]) -> None:
        self.model.start(slot, request.reward_prompt_ids, (other.reward_prompt_ids for other in coming))
        self.steps[slot] = 0

    def rewind(self, slot: int, request: Request, tokens: list[int]) -> None:
        self.model.rewind(slot, request.reward_prompt_ids + tokens)
        self.steps[slot] = len(tokens)

    def release(self, slot: int) -> None:
        self.model.release(slot)

    def begin_step(self) -> tuple[int, ...]:
        return self.model.begin_step()

    def rewards(self, tokens: Tensor) -> Tensor:
        self.tokens = tokens
        self.seen = self.reward_model.next_token_rewards(self.model.step(), tokens)
        if self.reward_model.adds_up:
            self.seen = self.totals[self.index, self.steps][:, None] + self.seen
        return self.seen

    def commit(self, index: Tensor, running: Tensor) -> None:
        self.model.advance(self.tokens.gather(1, index[:, None])[:, 0], running)
        self.steps += running
        total = self.totals[self.index, self.steps]
        chosen = self.seen.gather(1, index[:, None])[:, 0]
        self.totals[self.index, self.steps] = torch.where(running, chosen, total)

    def state(self) -> list[Tensor]:
        return [self.model.slots.lengths, self.model.pending, self.steps, self.totals]


class TextGuidance:
    """The reward of each candidate by reading the whole text anew: for any classifier, with any tokenizer.

    A slot's k texts are one forward, whose shape is their own: k forwards of a text cost what they must, since a
    tokenizer may cut the same text differently with every character that follows.
    """

    on_device = False

    def __init__(self, reward: TextReward, tokenizer: PreTrainedTokenizerBase, num_slots: int, k: int) -> None:
        """`tokenizer` is the language model's."""
        self.reward, self.tokenizer, self.calls = reward, tokenizer, k
        self.requests: list[Request | None] = [None] * num_slots
        self.completions: list[list[int]] = [[] for _ in range(num_slots)]
        self.tokens = torch.zeros(num_slots, k, dtype=torch.long)  # the candidates of this step

    def reserve(self, length: int, keep: bool = True) -> None: ...

    def start(self, slot: int, request: Request, coming: list[Request]) -> None:
        self.requests[slot], self.completions[slot] = request, []

    def rewind(self, slot: int, request: Request, tokens: list[int]) -> None:
        self.completions[slot] = list(tokens)

    def release(self, slot: int) -> None:
        self.requests[slot] = None

    def begin_step(self) -> tuple[int, ...]:
        return ()

    def rewards(self, tokens: Tensor) -> Tensor:
        self.tokens = tokens.cpu()
        rewards = torch.zeros(self.tokens.shape)
        for slot, request in enumerate(self.requests):
            if request:
                rewards[slot] = torch.tensor(
                    self._rewards(request, self.completions[slot], self.tokens[slot].tolist())
                )
        return rewards.to(tokens.device)

    def _rewards(self, request: Request, completion: list[int], candidates: list[int]) -> list[float]:
        """Of a text that a tokenizer fails on they are NaN, which ends the slot and no other one."""
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

    def start(self, slot: int, request: Request, coming: list[Request]) -> None:
        for member in self.members:
            member.start(slot, request, coming)

    def rewind(self, slot: int, request: Request, tokens: list[int]) -> None:
        for member in self.members:
            member.rewind(slot, request, tokens)

    def release(self, slot: int) -> None:
        for member in self.members:
            member.release(slot)

    def begin_step(self) -> tuple[int, ...]:
        return tuple(number for member in self.members for number in member.begin_step())

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
