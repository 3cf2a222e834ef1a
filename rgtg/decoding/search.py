"""Search above the token: proposals of a whole segment, of which the reward model keeps one.

A slot proposes a segment of its completion, which is scored where it ends. Then the slot goes on, or goes back to
where the segment began and proposes another one. What a segment is and which proposal is kept tells the methods apart:

* best of n: a segment is the completion, the best of n proposals is kept;
* blockwise controlled decoding (arXiv 2310.17022): a segment is a block of tokens, the best of K is kept;
* CARDS (arXiv 2406.16306): a segment ends where the next token is uncertain, and a proposal is accepted or rejected by
  a threshold that rises along the completion; with segments of a fixed length it batches as well (STARS).

The proposals come from the policy of the engine, so that guidance of tokens can be searched above as well.
"""

from dataclasses import dataclass, field
from math import exp, fsum, isfinite, nan
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from rgtg.decoding.candidate_rewards import Guidance
from rgtg.decoding.cuda_graphs import Capture
from rgtg.decoding.engine import Engine
from rgtg.decoding.request import Request, Sequence
from rgtg.decoding.reward_source import Scorer
from rgtg.decoding.token_rule import Choice, Rule, row_key, uniform
from rgtg.errors import RowError
from rgtg.methods import Segments
from rgtg.models.language import LanguageModel
from rgtg.text_score import FINAL, score

NO_SEARCH = Segments("end", "best", 1)  # a sample that is left out of it: the first proposal is kept

Verdict = Literal["accept", "retry", "best"]


@dataclass(frozen=True)
class Proposal:
    """A completion up to the end of the proposed segment."""

    token_ids: list[int]
    token_rewards: list[float]  # r(x, y[:i]) of all of them, or of the whole alone
    score: float  # what it is judged by
    logprob: float
    stopped: bool = False  # by an EOS
    ended: bool = False  # by an EOS or the limit: there is no next segment


@dataclass
class Draft:
    """The search of one slot: where its segment began, and what was proposed for it so far."""

    segments: Segments
    max_new_tokens: int
    prompt_reward: float = 0.0
    start: int = 0  # tokens before the segment
    attempts: int = 0  # proposals for this segment
    judged: int = 0  # proposals for all segments
    discarded: int = 0  # tokens of proposals that were not kept, or were decoded twice
    best: Proposal | None = field(default=None, repr=False)

    def judge(self, proposal: Proposal, chance: float) -> Verdict:
        """Keep the proposal, try again, or go on with the best one so far. `chance` is uniform in (0, 1)."""
        self.attempts += 1
        self.judged += 1
        if self.best is None or proposal.score > self.best.score:
            self.best = proposal
        if self.segments.accept == "threshold" and chance < self.acceptance(proposal):
            return "accept"
        if self.attempts < self.segments.proposals:
            return "retry"
        return "accept" if self.best is proposal else "best"

    def advance(self, start: int) -> None:
        """The next segment begins behind `start` tokens."""
        self.start, self.attempts, self.best = start, 0, None

    def acceptance(self, proposal: Proposal) -> float:
        """min(1, exp((r - tau) / scale)): CARDS, whose tau rises to the target along the completion."""
        target, alpha = self.segments.target or 0.0, self.segments.alpha
        first = (1 - alpha) * self.prompt_reward + alpha * target
        tau = min(target, first + len(proposal.token_ids) * (target - first) / self.max_new_tokens)
        return 1.0 if proposal.score >= tau else exp((proposal.score - tau) / self.segments.scale)


class SearchEngine(Engine):
    """An engine whose slots propose segments and go back. What a slot does still depends on its request alone."""

    def __init__(
        self,
        language: LanguageModel,
        guidance: Guidance | None,
        rule: Rule,
        slots: int,
        segments: Segments,
        scorer: Scorer,
        score_way: str = FINAL,
    ) -> None:
        """Proposals are judged by the rewards of the guidance, or by the scorer where there is none: whole completions
        by their score, segments by the reward where they end, as published.
        """
        super().__init__(language, guidance, rule, slots)
        self.segments, self.scorer = segments, scorer
        self.score_way = score_way if segments.until == "end" else FINAL
        self.drafts = [Draft(segments, 1) for _ in range(slots)]
        # Tokens of a proposal that is decoded again because a worse one came after it; -1 is a free choice.
        self.forced = torch.zeros(slots, 0, dtype=torch.long, device=self.device)

    def use_graphs(self, capture: Capture, stride: int) -> None:
        super().use_graphs(capture, 1)  # every token may end a segment

    def _assign(self, slot: int, request: Request) -> None:
        steering = request.steering_of(request.started)
        super()._assign(slot, request)
        segments = NO_SEARCH if steering and not steering.search else self.segments
        if segments.accept == "threshold" and request.prompt_reward is None:
            request.prompt_reward = self.scorer.prompt_reward(request)
        self.drafts[slot] = Draft(segments, request.max_new_tokens, request.prompt_reward or 0.0)
        self.forced[slot] = -1

    def reserve(self, length: int, new: int) -> None:
        super().reserve(length, new)
        grow = self.tokens.shape[1] - self.forced.shape[1]
        if grow > 0:
            self.forced = pad(self.forced, (0, grow), value=-1)

    def _choose(self, logprobs: Tensor, rewards: Tensor | None, tokens: Tensor) -> Choice:
        choice = super()._choose(logprobs, rewards, tokens)
        forced = self.forced[self.index, self.steps]
        # What was chosen once is among the candidates again: the slot is the same, bit by bit.
        again = (tokens == forced[:, None]).byte().argmax(-1)
        index = torch.where(forced >= 0, again, choice.candidate)
        return choice._replace(candidate=index, logprob=logprobs.gather(-1, index[:, None])[:, 0])

    def _end(self, logits: Tensor) -> list[Request]:
        """Judge the segments that end with this step's token, or ended before it because it was uncertain."""
        stops, breaks, steps = self.stopped.tolist(), self.broken.tolist(), self.steps.tolist()
        ends = (~self.running).tolist()
        uncertain = [False] * self.slots
        if self.segments.until == "entropy":
            logprobs = logits.float().log_softmax(-1)
            uncertain = (-(logprobs.exp() * logprobs).nansum(-1) >= self.segments.entropy).tolist()
        finished: list[Request] = []
        for slot, owner in enumerate(self.owners):
            if owner is None:
                continue
            draft, length = self.drafts[slot], steps[slot]
            if breaks[slot]:
                finished += self._finish(slot, self._sequence(slot))
                continue
            segments = draft.segments
            ended_before = (
                uncertain[slot] and segments.until == "entropy" and length - 1 - draft.start >= segments.shortest
            )
            # If the segment is kept, this step's token is the first of the next one.
            if ended_before and not self._goes_on(slot, self._proposal(slot, length - 1), finished):
                continue
            if ends[slot] or length - draft.start == segments.length:
                self._goes_on(slot, self._proposal(slot, length, stops[slot], ends[slot]), finished)
        return finished

    def _proposal(self, slot: int, length: int, stopped: bool = False, ended: bool = False) -> Proposal:
        owner = self.owners[slot]
        assert owner is not None
        tokens = self.tokens[slot, :length].tolist()
        own = self.rewards[slot, :length].tolist() if self.guidance else None
        rewards = own or self._scored(owner[0], tokens)
        logprob = fsum(self.logprobs[slot, :length].tolist())
        return Proposal(tokens, rewards, score(rewards, self.score_way), logprob, stopped, ended)

    def _scored(self, request: Request, tokens: list[int]) -> list[float]:
        """Of a text that a tokenizer fails on the reward is NaN, which ends the slot and no other one."""
        try:
            return self.scorer.score(request, [tokens])[0]
        except RowError:
            return [nan]

    def _goes_on(self, slot: int, proposal: Proposal, finished: list[Request]) -> bool:
        """Judge a proposal, and keep it, go back, or finish the slot; whether the slot goes on behind it."""
        owner = self.owners[slot]
        assert owner is not None
        request, sample = owner
        draft = self.drafts[slot]
        key = request.seed, request.prompt_id, sample, draft.judged + 1
        verdict = draft.judge(proposal, uniform(*key))
        kept = draft.best if verdict == "best" and draft.best else proposal
        if not isfinite(proposal.score) or (verdict != "retry" and kept.ended):
            finished += self._finish(slot, self._kept(slot, kept if isfinite(proposal.score) else proposal))
            return False
        if verdict == "accept":
            draft.advance(len(proposal.token_ids))
            return True
        self._rewind(slot, request, draft.start)
        if verdict == "retry":
            self.keys[slot] = row_key(*key)
        else:
            again = torch.tensor(kept.token_ids[draft.start :], device=self.device)
            self.forced[slot, draft.start : len(kept.token_ids)] = again
            draft.advance(len(kept.token_ids))
        return False

    def _rewind(self, slot: int, request: Request, length: int) -> None:
        """Go back to where the completion in `slot` had `length` tokens."""
        self.drafts[slot].discarded += int(self.steps[slot]) - length
        kept = self.tokens[slot, :length].tolist()
        self.language.rewind(slot, request.prompt_ids + kept)
        if self.guidance:
            self.guidance.rewind(slot, request, kept)
        self.steps[slot] = length
        self.running[slot], self.stopped[slot] = True, False

    def _kept(self, slot: int, proposal: Proposal) -> Sequence:
        """The completion that a slot ends with."""
        draft = self.drafts[slot]
        decoded = int(self.steps[slot]) + draft.discarded
        scored = self.scorer.calls * (draft.judged + (draft.segments.accept == "threshold"))
        return Sequence(
            token_ids=proposal.token_ids,
            token_rewards=proposal.token_rewards,
            logprob=proposal.logprob,
            guided_logprob=None,
            finish_reason="stop" if proposal.stopped else "length",
            language_calls=decoded,
            reward_calls=decoded * self.guidance.calls if self.guidance else scored,
        )
