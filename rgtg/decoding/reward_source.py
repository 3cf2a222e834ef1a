"""Who gives rewards to a decoder: reward models that share the language model's tokens, or any classifier of text."""

from datetime import date
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rgtg.chat import Prompt, encode_prompt, encode_response
from rgtg.decoding.candidate_rewards import (
    CandidateGuidance,
    EnsembleGuidance,
    Guidance,
    NextTokenGuidance,
    TextGuidance,
    completion_text,
)
from rgtg.decoding.request import Request
from rgtg.errors import UserError
from rgtg.methods import METHODS, check_head
from rgtg.models.ensemble import Combine, combine
from rgtg.models.loading import num_embeddings
from rgtg.models.reward import RewardModel, check_same_tokens
from rgtg.models.shapes import right_padded, round_up
from rgtg.models.text_reward import TextReward
from rgtg.text_score import FINAL

# Texts of a forward. Not measured: the shape of what is scored while decoding is that of one request, whatever BATCH.
BATCH = 32

# Widths are a multiple of this, since rounding depends on the shape. By arithmetic 16 tokens of padding on average,
# and 16 shapes up to 512 tokens.
WIDTH_MULTIPLE = 32


class Scorer(Protocol):
    calls: int  # reward models that are asked for a prefix
    context: int | None  # tokens of a prompt and its completion together, at most; None where longer ones are cut
    vocabulary: int | None  # ids below it can be scored
    score_way: str  # how the rewards of a text's prefixes become its score

    adds_up: bool  # whether the reward of a text is a sum over its tokens

    def read(self, prompt: Prompt) -> tuple[list[int], str]:
        """A prompt as a request carries it: token ids, or text. Raises RowError for one that cannot be tokenized."""

    def guidance(self, method: str, slots: int, k: int) -> Guidance | None:
        """What shows the candidates' rewards to a method; None where it looks at none."""

    def score(self, request: Request, completions: list[list[int]]) -> list[list[float]]:
        """Rewards r(x, y[:i]) of every prefix of completions, or, where each would cost a forward, of the whole."""

    def prompt_reward(self, request: Request) -> float:
        """The reward r(x) of a prompt without a completion."""

    def score_texts(self, prompts: list[Prompt], texts: list[str], complete: bool) -> list[list[float]]:
        """The same of given texts; `complete` adds the EOS."""


class TokenScorer:
    """Reward models that read the language model's own tokens; of several, all rewards are combined to one."""

    def __init__(
        self,
        models: list[RewardModel],
        language: PreTrainedTokenizerBase,
        how: Combine = "mean",
        width: float = 1.0,
        day: date | None = None,
    ) -> None:
        """Raises UserError where a model has other tokens."""
        for model in models:
            check_same_tokens(language, model.tokenizer)
        self.models, self.how, self.width = models, how, width
        self.day = day or date.today()
        self.calls = len(models)
        self.tokenizer = models[0].tokenizer
        self.context: int | None = min(model.context for model in models)
        self.vocabulary: int | None = min(num_embeddings(model.model) for model in models)
        ways = {model.score_way for model in models}
        self.score_way = ways.pop() if len(ways) == 1 else FINAL
        self.adds_up = any(model.adds_up for model in models)

    def read(self, prompt: Prompt) -> tuple[list[int], str]:
        return encode_prompt(self.tokenizer, prompt, self.day), ""

    def guidance(self, method: str, slots: int, k: int) -> Guidance | None:
        sees = METHODS[method].guidance
        for model in self.models:
            check_head(method, model.head_kind)
        if sees == "none":
            return None
        members: list[Guidance] = [
            CandidateGuidance(model, slots, k) if sees == "candidates" else NextTokenGuidance(model, slots)
            for model in self.models
        ]
        return EnsembleGuidance(members, self.how, self.width) if len(members) > 1 else members[0]

    def score(self, request: Request, completions: list[list[int]]) -> list[list[float]]:
        return self._score([request.reward_prompt_ids] * len(completions), completions)

    def prompt_reward(self, request: Request) -> float:
        if self.adds_up:
            return 0.0  # of a prompt, nothing has been added up yet
        *before, last = request.reward_prompt_ids
        return self._score([before], [[last]])[0][0]

    def score_texts(self, prompts: list[Prompt], texts: list[str], complete: bool) -> list[list[float]]:
        prompt_ids = [encode_prompt(self.tokenizer, prompt, self.day) for prompt in prompts]
        ids = [
            encode_response(self.tokenizer, prompt, text, complete=complete, day=self.day)
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        for i, length in enumerate(len(p) + len(r) for p, r in zip(prompt_ids, ids, strict=True)):
            if self.context and length > self.context:
                raise UserError(
                    f"prompt {i} has {length} tokens with its completion, and the context is {self.context}"
                )
        batches = [slice(start, start + BATCH) for start in range(0, len(ids), BATCH)]
        return [rewards for rows in batches for rewards in self._score(prompt_ids[rows], ids[rows])]

    @torch.inference_mode()
    def _score(self, prompt_ids: list[list[int]], response_ids: list[list[int]]) -> list[list[float]]:
        lengths = [len(p) + len(r) for p, r in zip(prompt_ids, response_ids, strict=True)]
        width = min(round_up(max(lengths), WIDTH_MULTIPLE), self.context or max(lengths))
        device = self.models[0].model.device
        ids = right_padded([[*p, *r] for p, r in zip(prompt_ids, response_ids, strict=True)], width).to(device)
        starts = torch.tensor([len(prompt) for prompt in prompt_ids], device=device)
        every = torch.stack([model(ids, starts) for model in self.models])
        rewards: Tensor = combine(every, self.how, self.width).cpu()
        return [
            row[len(prompt) : length].tolist()
            for row, prompt, length in zip(rewards, prompt_ids, lengths, strict=True)
        ]


class TextScorer:
    """Any classifier of text. Longer texts than its context are cut at the front; a finished one gets no EOS."""

    calls = 1
    context: int | None = None
    vocabulary: int | None = None
    score_way = FINAL
    adds_up = False

    def __init__(self, reward: TextReward, language: PreTrainedTokenizerBase) -> None:
        self.reward, self.language = reward, language

    def read(self, prompt: Prompt) -> tuple[list[int], str]:
        text = self.reward.prompt(prompt)
        self.reward.encode(text)  # a text that fails is refused here: in the engine other rows are beside it
        return [], text

    def guidance(self, method: str, slots: int, k: int) -> Guidance | None:
        check_head(method, "scalar")
        reads = METHODS[method].guidance != "none"
        return TextGuidance(self.reward, self.language, slots, k) if reads else None

    def score(self, request: Request, completions: list[list[int]]) -> list[list[float]]:
        texts = [completion_text(self.language, request, ids) for ids in completions]
        return [[self.reward.forward_texts([text])[0]] for text in texts]

    def prompt_reward(self, request: Request) -> float:
        return self.reward.forward_texts([request.reward_text])[0]

    def score_texts(self, prompts: list[Prompt], texts: list[str], complete: bool) -> list[list[float]]:
        return [[reward] for reward in self.reward.score(prompts, texts)]
