"""One worker's training: a step over its share of a batch, evaluation, state. The same code for one and for many."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from math import cos, isfinite, pi

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from rgtg.config import TrainReward
from rgtg.errors import UserError
from rgtg.methods import OBJECTIVES
from rgtg.models.loading import has_fast_bfloat16
from rgtg.models.reward import RewardModel
from rgtg.models.shapes import round_up
from rgtg.preferences.tokenized import TokenizedPair
from rgtg.training.batch import Batch, collate
from rgtg.training.losses import Prefixes, loss_of, prefix_mask, prefix_rewards
from rgtg.training.prefix_accuracy import PrefixAccuracy

# For a worker that has run out of pairs before the others: it must take part, and this one has no gradient.
NO_PAIR = TokenizedPair(prompt_ids=[0], chosen_ids=[0], rejected_ids=[0], common=1)

MICRO_TOKENS = 8192  # of a forward, padding included, where the settings do not say how many pairs it takes

# On a GPU a new width costs memory of its own and a choice of kernels, and tensor cores take multiples of eight. On a
# CPU padding costs what tokens cost.
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
    """The reward model, its optimizer and its schedule on one worker; the owner of all that a checkpoint holds."""

    def __init__(self, reward_model: RewardModel, settings: TrainReward, num_steps: int, device: torch.device) -> None:
        if settings.lora_rank:
            reward_model.add_adapters(settings.lora_rank, settings.lora_alpha)
        self.reward_model = reward_model.train()
        self.settings, self.num_steps, self.device, self.step = settings, num_steps, device, 0
        self.width_multiple = GPU_WIDTH_MULTIPLE if device.type == "cuda" else 1
        self.objective, self.loss = OBJECTIVES[settings.objective], loss_of(settings.objective, settings.average)
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        if settings.gradient_checkpointing:
            model = reward_model.model
            # Its name from transformers 5.20 on, and the one before.
            (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
        self.model: nn.Module = self.reward_model
        if self.world > 1 and settings.strategy == "fsdp":
            for layer in _layers(self.reward_model):  # each moves to the device as it is sharded: the whole never does
                fully_shard(layer)
            fully_shard(self.reward_model)
        else:
            self.reward_model.to(device)
        if self.world > 1 and settings.strategy == "ddp":
            self.model = DistributedDataParallel(
                self.reward_model, device_ids=[device] if device.type == "cuda" else None
            )
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def train_step(self, pairs: list[TokenizedPair]) -> StepResult:
        """One optimizer step on this worker's pairs. Every worker calls it equally often.

        The gradient is that of the mean over the whole batch, however it is spread over workers and micro-batches.
        """
        shares = by_length(pairs, self.settings.micro_batch_size, self.width_multiple)
        shares += [[NO_PAIR]] * (self._forwards(len(shares)) - len(shares))
        eos_id = self.reward_model.tokenizer.eos_token_id
        # Padding with EOS is a matter of prefixes; the full objective compares responses where they end.
        after_end = self.settings.after_end if self.settings.objective == "partial" else "hold"
        batches = [collate(share, after_end, eos_id, self._width(share)) for share in shares]
        masks = [self._mask(batch) for batch in batches]
        # What a loss is divided by follows from lengths alone, and is wanted before the first backward. It is counted
        # on the host: until the gradient is there, nothing waits for the device.
        counts = [self.loss.num_terms(_unscored(batch, mask)) for batch, mask in zip(batches, masks, strict=True)]
        count = self._sum(torch.stack(counts).sum().to(self.device)).clamp(min=1)
        numbers = [len(pairs), int(torch.stack([mask.sum() for mask in masks]).sum()), sum(p.common for p in pairs)]
        batches = [batch.to(self.device) for batch in batches]
        masks = [mask.to(self.device, non_blocking=True) for mask in masks]
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * self._schedule()
        loss_sum = torch.zeros((), device=self.device)
        for i, (batch, mask) in enumerate(zip(batches, masks, strict=True)):
            with self._no_sync(last=i == len(batches) - 1), self._autocast():
                loss = self._loss_sum(batch, mask)
                # Workers' gradients are averaged, hence times their number.
                (loss * self.world / count).backward()
            loss_sum += loss.detach()
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        grad_norm = grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm  # FSDP2 shards it
        norm = float(grad_norm)
        if not isfinite(norm):  # the same on all workers
            raise UserError(
                f"the gradient of step {self.step + 1} is not finite: the weights of the model that training starts "
                "from are broken, or train_reward.learning_rate is too high"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        loss = self._sum(loss_sum) / count
        totals = self._sum(torch.tensor(numbers, dtype=torch.float64, device=self.device))
        value, *totalled = torch.cat([loss.double()[None], totals]).tolist()
        return StepResult(value, norm, *map(int, totalled))

    @torch.no_grad()
    def evaluate(self, batches: Iterable[list[TokenizedPair]]) -> dict[str, dict[str, float]]:
        """Held-out accuracy by prefix length over the pairs of all workers."""
        self.model.eval()
        accuracy = PrefixAccuracy()
        for pairs in batches:
            batch = collate(pairs, "hold", None, self._width(pairs)).to(self.device)
            with self._autocast():
                prefixes = self._prefixes(batch, self._mask(batch), self.reward_model)
            longer = torch.maximum(batch.chosen_lengths, batch.rejected_lengths)
            accuracy.add(prefixes.chosen, prefixes.rejected, longer, batch.common)
        self.model.train()
        accuracy.right = self._sum(accuracy.right.to(self.device)).cpu()
        accuracy.total = self._sum(accuracy.total.to(self.device)).cpu()
        return accuracy.summary()

    def state(self) -> dict:
        """Everything to go on from, whole on the CPU of worker 0. A collective call."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        model, optimizer = get_state_dict(self.reward_model, self.optimizer, options=options)
        return {"model": model, "optimizer": optimizer, "step": self.step}

    def restore(self, state: dict) -> None:
        """Go on from a `state`, which every worker passes whole."""
        set_state_dict(
            self.reward_model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(full_state_dict=True),
        )
        self.step = state["step"]

    def _loss_sum(self, batch: Batch, mask: Tensor) -> Tensor:
        return self.loss.loss_sum(self._prefixes(batch, mask, self.model, self.objective.scale))

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
        """Tokens of a row of a batch, padding included; learned positions end with the context."""
        return min(round_up(max(pair.length for pair in pairs), self.width_multiple), self.reward_model.context)

    def _mask(self, batch: Batch) -> Tensor:
        return prefix_mask(
            batch.chosen_lengths, batch.rejected_lengths, batch.common, batch.num_prefixes, self.settings.min_prefix
        )

    def _forwards(self, needed: int) -> int:
        """Forwards of this worker in a step: at least one.

        With sharded weights as many as any worker needs, since each gathers the weights from all of them.
        """
        if self.world == 1 or self.settings.strategy == "ddp":
            return max(1, needed)
        most = torch.tensor(max(1, needed), device=self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    def _schedule(self) -> float:
        """Linear warm-up, then a cosine to a tenth."""
        warmup = max(1, round(self.settings.warmup * self.num_steps))
        if self.step < warmup:
            return (self.step + 1) / warmup
        progress = (self.step - warmup) / max(1, self.num_steps - warmup)
        return 0.1 + 0.45 * (1 + cos(pi * min(1.0, progress)))

    def _no_sync(self, *, last: bool):
        """Gradients of the workers are summed with the last micro-batch alone."""
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return nullcontext()

    def _autocast(self):
        precision = self.settings.precision
        bf16 = has_fast_bfloat16(self.device) if precision == "auto" else precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext()

    def _sum(self, value: Tensor) -> Tensor:
        """The sum of a value over all workers."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value


def by_length(pairs: list[TokenizedPair], most: int | None = None, multiple: int = 1) -> list[list[TokenizedPair]]:
    """Pairs in groups for a forward each, those of a length together: less padding. `most` pairs, or by tokens.

    Widths are rounded up to a `multiple`.
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


def _layers(reward_model: RewardModel) -> list[nn.Module]:
    """The backbone's decoder layers: the units that FSDP gathers one after the other."""
    lists = [list(m) for m in reward_model.backbone.children() if isinstance(m, nn.ModuleList)]
    return max(lists, key=len, default=[])
