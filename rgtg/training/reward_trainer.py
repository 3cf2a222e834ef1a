"""The training of a reward model on one worker: a step over its share of a batch, and evaluation.

The same code runs on one worker and on many; what is not the objective's is in `distributed.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rgtg.methods import OBJECTIVES
from rgtg.models.reward import RewardModel
from rgtg.models.shapes import round_up
from rgtg.preferences.tokenized import TokenizedPair
from rgtg.text_score import FINAL, WAYS
from rgtg.training.batch import Batch, collate
from rgtg.training.distributed import DistributedModel
from rgtg.training.losses import Prefixes, loss_of, prefix_mask, prefix_rewards
from rgtg.training.prefix_accuracy import PrefixAccuracy
from rgtg.training_settings import TrainReward

# For a worker that runs out of pairs before the others: it must take part, and this pair has no gradient.
NO_PAIR = TokenizedPair(prompt_ids=[0], chosen_ids=[0], rejected_ids=[0], common=1)

# Tokens of a forward, padding included, where micro_batch_size is not set. Measured on one CPU core (CPU ms a pair):
# 100 with 1,024 and 2,048, 121 with 4,096, 127 with 8,192; a GPU needs large forwards. Again:
# `python -m pipelines.benchmarks.constants MICRO_TOKENS`.
MICRO_TOKENS = 8192

# On a GPU a new width costs memory and a choice of kernels, and tensor cores take multiples of 8; on a CPU, whose
# multiple is 1, padding costs as much as tokens. By arithmetic 32 tokens of padding on average. Not measured for want
# of a GPU: `python -m pipelines.benchmarks.constants GPU_WIDTH_MULTIPLE`.
GPU_WIDTH_MULTIPLE = 64


@dataclass(frozen=True)
class StepResult:
    """Figures of one optimizer step over all workers."""

    loss: float
    grad_norm: float
    pairs: int
    prefixes: int  # prefix pairs that counted
    masked: int  # prefix pairs left out because their tokens are identical


class RewardTrainer:
    """The objective of a reward model, on top of a `DistributedModel` that holds all that a checkpoint must."""

    def __init__(self, reward_model: RewardModel, settings: TrainReward, num_steps: int, device: torch.device) -> None:
        if settings.lora_rank:
            reward_model.add_adapters(settings.lora_rank, settings.lora_alpha)
        self.reward_model = reward_model.train()
        self.settings, self.device = settings, device
        self.distributed = DistributedModel(reward_model, reward_model.model, settings, num_steps, device)
        self.width_multiple = GPU_WIDTH_MULTIPLE if device.type == "cuda" else 1
        self.objective, self.loss = OBJECTIVES[settings.objective], loss_of(settings.objective, settings.average)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.distributed.step

    def train_step(self, pairs: list[TokenizedPair]) -> StepResult:
        """One optimizer step on this worker's pairs. Every worker calls it equally often.

        The gradient is that of the mean over the whole batch, however it is spread over workers and micro-batches.
        """
        shares = by_length(pairs, self.settings.micro_batch_size, self.width_multiple)
        shares += [[NO_PAIR]] * (self.distributed.num_forwards(len(shares)) - len(shares))
        eos_id = self.reward_model.tokenizer.eos_token_id
        # Padding with EOS concerns prefixes only; the full objective compares responses at their ends.
        after_end = self.settings.after_end if self.settings.objective == "partial" else "hold"
        batches = [collate(share, after_end, eos_id, self._width(share)) for share in shares]
        masks = [self._mask(batch) for batch in batches]
        # The divisor of the loss follows from lengths alone, and is needed before the first backward. It is counted on
        # the host, so that nothing waits for the device until the gradient is there.
        counts = [self.loss.num_terms(_unscored(batch, mask)) for batch, mask in zip(batches, masks, strict=True)]
        count = self.distributed.sum(torch.stack(counts).sum().to(self.device)).clamp(min=1)
        numbers = [len(pairs), int(torch.stack([mask.sum() for mask in masks]).sum()), sum(p.common for p in pairs)]
        batches = [batch.to(self.device) for batch in batches]
        masks = [mask.to(self.device, non_blocking=True) for mask in masks]
        loss_sum = torch.zeros((), device=self.device)
        for i, (batch, mask) in enumerate(zip(batches, masks, strict=True)):
            with self.distributed.micro_batch(last=i == len(batches) - 1):
                loss = self._loss_sum(batch, mask)
                # DDP and FSDP average gradients over workers; times their number makes the sum.
                (loss * self.distributed.world / count).backward()
            loss_sum += loss.detach()
        grad_norm = self.distributed.optimizer_step()
        loss = self.distributed.sum(loss_sum) / count
        totals = self.distributed.sum(torch.tensor(numbers, dtype=torch.float64, device=self.device))
        value, *totalled = torch.cat([loss.double()[None], totals]).tolist()
        return StepResult(value, grad_norm, *map(int, totalled))

    @torch.no_grad()
    def evaluate(self, batches: Iterable[list[TokenizedPair]]) -> dict[str, Any]:
        """Held-out accuracy by prefix length over the pairs of all workers, and the best score: see PrefixAccuracy."""
        self.distributed.model.eval()
        own = self.settings.score
        ways = (FINAL,) if self.reward_model.adds_up else WAYS if own in (None, *WAYS) else (*WAYS, own)
        accuracy = PrefixAccuracy(ways)
        for pairs in batches:
            batch = collate(pairs, "hold", None, self._width(pairs)).to(self.device)
            with self.distributed.autocast():
                prefixes = self._prefixes(batch, self._mask(batch), self.reward_model)
            accuracy.add(
                prefixes.chosen, prefixes.rejected, batch.chosen_lengths, batch.rejected_lengths, batch.common
            )
        self.distributed.model.train()
        accuracy.right = self.distributed.sum(accuracy.right.to(self.device)).cpu()
        accuracy.total = self.distributed.sum(accuracy.total.to(self.device)).cpu()
        return accuracy.summary(own if own in ways else None)

    def state(self) -> dict[str, Any]:
        """Everything to resume from, in full on the CPU of worker 0. A collective call."""
        return self.distributed.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from a `state`, which every worker passes in full."""
        self.distributed.restore(state)

    def _loss_sum(self, batch: Batch, mask: Tensor) -> Tensor:
        return self.loss.loss_sum(self._prefixes(batch, mask, self.distributed.model, self.objective.scale))

    def _prefixes(self, batch: Batch, mask: Tensor, model: nn.Module, scale: float = 1.0) -> Prefixes:
        """Rewards of all prefixes of the chosen and of the rejected responses, by one forward of both."""
        best_next = self.objective.best_next
        outputs = model(batch.input_ids, batch.prompt_lengths.repeat(2), best_next) * scale
        chosen, rejected = (outputs[0] if best_next else outputs).chunk(2)

        def at(rewards: Tensor, lengths: Tensor) -> Tensor:
            return prefix_rewards(rewards, batch.prompt_lengths, lengths, batch.num_prefixes)

        return _unscored(batch, mask)._replace(
            chosen=at(chosen, batch.chosen_lengths),
            rejected=at(rejected, batch.rejected_lengths),
            best_next=at(outputs[1].chunk(2)[0], batch.chosen_lengths) if best_next else None,
        )

    def _width(self, pairs: list[TokenizedPair]) -> int:
        """Width of a batch in tokens, padding included: at most the context, where learned positions end."""
        return min(round_up(max(pair.length for pair in pairs), self.width_multiple), self.reward_model.context)

    def _mask(self, batch: Batch) -> Tensor:
        return prefix_mask(
            batch.chosen_lengths, batch.rejected_lengths, batch.common, batch.num_prefixes, self.settings.min_prefix
        )


def by_length(pairs: list[TokenizedPair], most: int | None = None, multiple: int = 1) -> list[list[TokenizedPair]]:
    """Groups of pairs of similar length, one for each forward, which saves padding.

    A group has at most `most` pairs; without it, MICRO_TOKENS tokens of widths rounded up to a `multiple`.
    """
    groups: list[list[TokenizedPair]] = []
    for pair in sorted(pairs, key=lambda pair: pair.length):
        larger = len(groups[-1]) + 1 if groups else 0
        fits = larger <= most if most else 2 * larger * round_up(pair.length, multiple) <= MICRO_TOKENS
        if groups and fits:
            groups[-1].append(pair)
        else:
            groups.append([pair])
    return groups


def _unscored(batch: Batch, mask: Tensor) -> Prefixes:
    none = torch.zeros_like(mask, dtype=torch.float32)
    return Prefixes(none, none, mask, batch.chosen_lengths, batch.rejected_lengths)
