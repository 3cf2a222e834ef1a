"""The batched loop: slots of a cache that each decode one completion, and are refilled as soon as they finish."""

from collections import deque
from itertools import islice
from math import fsum

import torch
from torch import Tensor
from torch.nn.functional import pad

from rgtg.decoding.batched_model import BatchedModel
from rgtg.decoding.candidate_rewards import Guidance
from rgtg.decoding.cuda_graphs import Capture, Graphs
from rgtg.decoding.prefill import AHEAD
from rgtg.decoding.request import Request, Sequence
from rgtg.decoding.token_rule import Choice, Rule, candidates, choose, gumbel, row_key
from rgtg.models.language import LanguageModel

BROKEN = "the models gave no candidate a finite score (NaN or infinite weights?)"


class Engine:
    """Decodes requests in `slots` slots. `submit` at any time, `step` until `busy` is False; one thread.

    A completion depends on its request alone. Its noise is keyed by seed, prompt, sample, step and token; and every
    step computes all slots, idle ones too, because the rounding of a matrix product depends on its shape: a slot must
    come out bit by bit the same in any company.
    """

    def __init__(self, language: LanguageModel, guidance: Guidance | None, rule: Rule, slots: int) -> None:
        self.guidance, self.rule, self.slots = guidance, rule, slots
        self.language = BatchedModel(language.model, slots, lambda output: output.logits)
        self.device = language.device
        self.eos = torch.tensor(language.eos_ids, dtype=torch.long, device=self.device)
        self.queue: deque[Request] = deque()
        self.owners: list[tuple[Request, int] | None] = [None] * slots  # the request and sample of each slot
        self.index = torch.arange(slots, device=self.device)
        # Of each slot: tokens of its completion, the key of its noise, and how long it may become.
        self.steps, self.keys, self.limits = (
            torch.zeros(slots, dtype=torch.long, device=self.device) for _ in range(3)
        )
        # How it is steered: the multiplier of its reward, and whether it takes the mode.
        self.betas = torch.full((slots,), rule.beta, dtype=torch.float64, device=self.device)
        self.greedy = torch.full((slots,), rule.greedy, device=self.device)
        # Whether it is at work; if not, whether it ended with an EOS, or broken.
        self.running, self.stopped, self.broken = (
            torch.zeros(slots, dtype=torch.bool, device=self.device) for _ in range(3)
        )
        # Of each slot and step, as long as the longest completion.
        self.tokens = torch.zeros(slots, 0, dtype=torch.long, device=self.device)
        self.rewards = torch.zeros(slots, 0, device=self.device)
        self.logprobs = torch.zeros(slots, 0, dtype=torch.float64, device=self.device)
        self.guided_logprobs = self.logprobs.clone()
        self.stride = 1
        self.graphs: Graphs | None = None

    def use_graphs(self, capture: Capture, stride: int) -> None:
        """Compute steps by graphs, so many between two looks at which slots have ended."""
        self.stride, self.graphs = stride, Graphs(self._compute, self._state, capture)

    @property
    def busy(self) -> bool:
        return bool(self.queue) or any(self.owners)

    def submit(self, request: Request) -> None:
        self.queue.append(request)

    @torch.inference_mode()
    def reserve(self, length: int, new: int) -> None:
        """Make room for slots of `length` tokens, of which completions are up to `new`.

        Where slots are at work, what is in them is copied, and old and new memory are held for a moment.
        """
        keep = any(self.owners)
        self.language.reserve(length, keep)
        if self.guidance:
            self.guidance.reserve(length, keep)
        grow = new + 1 - self.tokens.shape[1]  # a slot that has ended writes one more
        if grow > 0:
            for name in ("tokens", "rewards", "logprobs", "guided_logprobs"):
                setattr(self, name, pad(getattr(self, name), (0, grow)))

    def run(self, requests: list[Request]) -> None:
        """Decode all of `requests`."""
        if requests:
            self.reserve(max(r.length for r in requests), max(r.max_new_tokens for r in requests))
        for request in requests:
            self.submit(request)
        while self.busy:
            self.step()

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """One token for every slot, or a few; the requests that this finished."""
        self._refill()
        if not any(self.owners):
            return []
        for _ in range(min(self.stride, self._most_left())):
            shape = (
                self.tokens.shape[1],
                self.language.begin_step(),
                self.guidance.begin_step() if self.guidance else (),
            )
            logits = self.graphs(shape) if self.graphs else self._compute()
        return self._end(logits)

    def _compute(self) -> Tensor:
        """One token for every slot that runs; the language model's logits (B, V) of it.

        Nothing here waits for the device, and all that lasts keeps its place in memory.
        """
        logits = self.language.step()
        logprobs, tokens = candidates(logits[:, : self.rule.vocabulary], self.rule.k)
        rewards = self.guidance.rewards(tokens) if self.guidance else None
        choice = self._choose(logprobs, rewards, tokens)
        chosen = self._record(tokens, rewards, choice)
        self.steps += self.running
        self.stopped |= self.running & (chosen[:, None] == self.eos).any(-1)
        self.broken |= self.running & ~(choice.logprob.isfinite() & choice.guided_logprob.isfinite())
        self.running &= ~(self.stopped | self.broken | (self.steps >= self.limits))
        # A slot that has ended goes no further: its next position may be none.
        self.language.advance(chosen, self.running)
        if self.guidance:
            self.guidance.commit(choice.candidate, self.running)
        return logits

    def _most_left(self) -> int:
        """Steps to the limit of the slot that has most of them left."""
        reached = self.language.slots.reached
        ends = {slot: len(o[0].prompt_ids) - 1 + o[0].max_new_tokens for slot, o in enumerate(self.owners) if o}
        return max(end - reached[slot] for slot, end in ends.items())

    def _state(self) -> list[Tensor]:
        """What changes from step to step, beside caches."""
        return [
            *(self.steps, self.running, self.stopped, self.broken),
            *(self.tokens, self.rewards, self.logprobs, self.guided_logprobs),
            *(self.language.slots.lengths, self.language.pending),
            *(self.guidance.state() if self.guidance else []),
        ]

    def _choose(self, logprobs: Tensor, rewards: Tensor | None, tokens: Tensor) -> Choice:
        noise = gumbel(self.keys, self.steps, tokens)
        return choose(logprobs, rewards, self.rule, noise, self.betas, self.greedy)

    def _record(self, tokens: Tensor, rewards: Tensor | None, choice: Choice) -> Tensor:
        """Write down what was chosen, (B,) tokens, and return it. A slot that does not run has room for one more."""
        index = choice.candidate[:, None]
        chosen = tokens.gather(1, index)[:, 0]
        at = self.index, self.steps
        self.tokens[at] = chosen
        if rewards is not None:
            self.rewards[at] = rewards.gather(1, index)[:, 0]
        self.logprobs[at] = choice.logprob.double()
        self.guided_logprobs[at] = choice.guided_logprob.double()
        return chosen

    def _end(self, logits: Tensor) -> list[Request]:
        """Free the slots whose completion has ended; the requests that this finished."""
        finished = []
        for slot, running in enumerate(self.running.tolist()):
            if self.owners[slot] and not running:
                finished += self._finish(slot, self._sequence(slot))
        return finished

    def _sequence(self, slot: int) -> Sequence:
        steps = int(self.steps[slot])
        return Sequence(
            token_ids=self.tokens[slot, :steps].tolist(),
            token_rewards=self.rewards[slot, :steps].tolist() if self.guidance else [],
            logprob=fsum(self.logprobs[slot, :steps].tolist()),
            guided_logprob=fsum(self.guided_logprobs[slot, :steps].tolist()),
            finish_reason="stop" if self.stopped[slot] else "length",
            language_calls=steps,
            reward_calls=steps * (self.guidance.calls if self.guidance else 0),
            error=BROKEN if self.broken[slot] else None,
        )

    def _finish(self, slot: int, sequence: Sequence) -> list[Request]:
        """Free a slot; its request, if this was the last of it."""
        owner = self.owners[slot]
        assert owner is not None
        request, sample = owner
        self.owners[slot] = None
        self.running[slot] = False
        self.language.release(slot)
        if self.guidance:
            self.guidance.release(slot)
        request.sequences[sample] = sequence
        return [request] if request.done else []

    def _refill(self) -> None:
        """Give every free slot to the next sample in the queue."""
        for slot, owner in enumerate(self.owners):
            if owner is None and self.queue:
                request = self.queue[0]
                self._assign(slot, request)
                if request.started == request.samples:
                    self.queue.popleft()

    def _assign(self, slot: int, request: Request) -> None:
        """The next sample of a request begins in `slot`."""
        self.reserve(request.length, request.max_new_tokens)
        self.owners[slot] = (request, request.started)
        self.keys[slot] = row_key(request.seed, request.prompt_id, request.started)
        self.steps[slot], self.limits[slot] = 0, request.max_new_tokens
        steering = request.steering_of(request.started)
        self.betas[slot] = steering.beta if steering else self.rule.beta
        self.greedy[slot] = steering.greedy if steering else self.rule.greedy
        self.running[slot], self.stopped[slot], self.broken[slot] = True, False, False
        request.started += 1
        coming = list(islice(self.queue, 1, AHEAD + 1))
        self.language.start(slot, request.prompt_ids, (other.prompt_ids for other in coming))
        if self.guidance:
            self.guidance.start(slot, request, coming)
