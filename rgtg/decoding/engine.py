"""The batched loop: rows of a cache that each decode one completion, and are refilled as soon as they finish."""

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rgtg.decoding.guidance import Guidance
from rgtg.decoding.policy import Choice, Rule, candidates, choose, gumbel, row_key
from rgtg.decoding.reader import Reader
from rgtg.models.language import LanguageModel


@dataclass
class Sequence:
    """One completion as token ids; `finish_reason` is `stop` or `length`."""

    token_ids: list[int]
    token_rewards: list[float]
    logprob: float
    guided_logprob: float
    finish_reason: str
    error: str | None = None


@dataclass(eq=False)
class Request:
    """One prompt and the completions asked for: `sequences` fills up, `done` says when."""

    prompt_id: str
    prompt_ids: list[int]
    reward_prompt_ids: list[int]  # the same prompt in the reward model's own template
    samples: int
    max_new_tokens: int
    seed: int
    sequences: dict[int, Sequence] = field(default_factory=dict)
    started: int = 0  # samples that have or had a row
    source: int = -1  # a row that holds the prompt, from which the next samples start

    @property
    def done(self) -> bool:
        return len(self.sequences) == self.samples


class Engine:
    """Decodes requests on `slots` rows. `submit` at any time, `step` until `busy` is False; one thread.

    A completion depends on its request alone. Its noise is keyed by seed, prompt, sample, step and token; and every
    step computes all rows, idle ones too, because the rounding of a matrix product depends on its shape: a row must
    come out bit by bit the same in any company.
    """

    def __init__(self, language: LanguageModel, guidance: Guidance | None, rule: Rule, slots: int) -> None:
        self.guidance, self.rule, self.slots = guidance, rule, slots
        self.language = Reader(language.model, slots, lambda output: output.logits)
        device = language.device
        self.eos = torch.tensor(language.eos_ids, dtype=torch.long, device=device)
        self.queue: deque[Request] = deque()
        self.owners: list[tuple[Request, int] | None] = [None] * slots  # the request and sample of each row

        def per_row(dtype: torch.dtype) -> Tensor:
            return torch.zeros(slots, dtype=dtype, device=device)

        self.rows = torch.arange(slots, device=device)
        self.steps, self.keys, self.limits = (per_row(torch.long) for _ in range(3))
        self.logprobs, self.guided_logprobs = per_row(torch.float64), per_row(torch.float64)
        self.tokens = torch.zeros(slots, 0, dtype=torch.long, device=device)
        self.rewards = torch.zeros(slots, 0, device=device)

    @property
    def busy(self) -> bool:
        return bool(self.queue) or any(self.owners)

    def submit(self, request: Request) -> None:
        self.queue.append(request)

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """One token for every row; the requests that this finished."""
        self._refill()
        if not any(self.owners):
            return []
        logprobs, tokens = candidates(self.language.step()[:, : self.rule.vocabulary], self.rule.k)
        rewards = self.guidance.rewards(tokens) if self.guidance else None
        noise = None if self.rule.greedy else gumbel(self.keys, self.steps, tokens)
        choice = choose(logprobs, rewards, self.rule, noise)
        if self.guidance:
            self.guidance.commit(choice.candidate)
        return self._record(tokens, rewards, choice)

    def run(self, requests: list[Request]) -> None:
        """Decode all of `requests`."""
        for request in requests:
            self.submit(request)
        while self.busy:
            self.step()

    def _record(self, tokens: Tensor, rewards: Tensor | None, choice: Choice) -> list[Request]:
        """Write down what was chosen, and free the rows that ended."""
        index = choice.candidate[:, None]
        chosen = tokens.gather(1, index)[:, 0]
        self.language.pending = chosen
        self.tokens[self.rows, self.steps] = chosen
        if rewards is not None:
            self.rewards[self.rows, self.steps] = rewards.gather(1, index)[:, 0]
        self.logprobs += choice.logprob
        self.guided_logprobs += choice.guided_logprob
        self.steps += 1
        stopped = torch.isin(chosen, self.eos)
        broken = ~(choice.logprob.isfinite() & choice.guided_logprob.isfinite())
        finished = []
        for row in (stopped | broken | (self.steps >= self.limits)).nonzero()[:, 0].tolist():
            if self.owners[row] is not None:
                request = self._finish(row, stopped=bool(stopped[row]), broken=bool(broken[row]))
                if request.done:
                    finished.append(request)
        return finished

    def _finish(self, row: int, *, stopped: bool, broken: bool) -> Request:
        owner = self.owners[row]
        assert owner is not None
        request, sample = owner
        self.owners[row] = None
        steps = int(self.steps[row])
        request.sequences[sample] = Sequence(
            token_ids=self.tokens[row, :steps].tolist(),
            token_rewards=self.rewards[row, :steps].tolist() if self.guidance else [],
            logprob=float(self.logprobs[row]),
            guided_logprob=float(self.guided_logprobs[row]),
            finish_reason="stop" if stopped else "length",
            error="the models gave no candidate a finite score (NaN or infinite weights?)" if broken else None,
        )
        return request

    def _refill(self) -> None:
        """Give every free row to the next sample in the queue: one prefill a prompt, the other samples copy it."""
        resumed: list[tuple[Request, int]] = []  # samples whose prompt some row holds since an earlier step
        fresh: list[Request] = []
        forked: list[tuple[Request, int]] = []  # samples whose prompt comes in now
        for row in self._idle_rows():
            if not self.queue:
                break
            request = self.queue[0]
            if request.started == 0:
                request.source = row
                fresh.append(request)
            else:
                (forked if request in fresh else resumed).append((request, row))
            self._assign(row, request)
            if request.started == request.samples:
                self.queue.popleft()
        # In this order, since the row that holds a prompt may itself have finished and now begin another one.
        self._fork(resumed)
        self._start(fresh)
        self._fork(forked)
        if idle := self._idle_rows():
            self.steps[idle] = 0
            self.language.park(idle)
            if self.guidance:
                self.guidance.park(idle)

    def _idle_rows(self) -> list[int]:
        return [row for row, owner in enumerate(self.owners) if owner is None]

    def _start(self, requests: list[Request]) -> None:
        for request in requests:
            self.language.start(request.source, request.prompt_ids)
            if self.guidance:
                self.guidance.start(request.source, request.reward_prompt_ids)

    def _fork(self, starts: list[tuple[Request, int]]) -> None:
        for request, row in starts:
            self.language.fork(request.source, row, request.prompt_ids)
            if self.guidance:
                self.guidance.fork(request.source, row, request.reward_prompt_ids)

    def _assign(self, row: int, request: Request) -> None:
        self.owners[row] = (request, request.started)
        self.keys[row] = row_key(request.seed, request.prompt_id, request.started)
        self.steps[row], self.limits[row] = 0, request.max_new_tokens
        self.logprobs[row] = self.guided_logprobs[row] = 0
        request.started += 1
        self._reserve(request)

    def _reserve(self, request: Request) -> None:
        self.language.reserve(len(request.prompt_ids) + request.max_new_tokens)
        if self.guidance:
            self.guidance.reserve(len(request.reward_prompt_ids) + request.max_new_tokens)
        grow = request.max_new_tokens + 1 - self.tokens.shape[1]
        if grow > 0:
            self.tokens = torch.nn.functional.pad(self.tokens, (0, grow))
            self.rewards = torch.nn.functional.pad(self.rewards, (0, grow))
