"""What every trainer needs, whatever its objective: a model on one worker or many, its optimizer, schedule and state.

A trainer owns the objective: batches, forwards and the loss. It holds a `DistributedModel`, and a step of it is

    for each micro-batch:
        with distributed.micro_batch(last=...):
            (loss_sum * distributed.world / count_over_all_workers).backward()
    grad_norm = distributed.optimizer_step()
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import cos, isfinite, pi
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from rgtg.errors import UserError
from rgtg.models.loading import has_fast_bfloat16
from rgtg.training.learning_rate import default_learning_rate


class OptimizerSettings(Protocol):
    """The settings of a training job that are read here; `rgtg.config` documents them."""

    @property
    def strategy(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def gradient_checkpointing(self) -> bool: ...
    @property
    def learning_rate(self) -> float | None: ...
    @property
    def warmup(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def max_grad_norm(self) -> float: ...


class DistributedModel:
    """A model in training, its AdamW optimizer and the step they stand at: all that a checkpoint must hold.

    `module` is what is trained, and `transformer` the Hugging Face model in it, whose layers FSDP shards one by one.
    Forwards of training go through `model`, which is `module` or DDP around it; those of evaluation through `module`.
    """

    def __init__(
        self,
        module: nn.Module,
        transformer: PreTrainedModel,
        settings: OptimizerSettings,
        num_steps: int,
        device: torch.device,
    ) -> None:
        self.module, self.settings, self.num_steps, self.device, self.step = module, settings, num_steps, device, 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        if settings.gradient_checkpointing:
            enable_gradient_checkpointing(transformer)
        self.model: nn.Module = module
        if self.world > 1 and settings.strategy == "fsdp":
            for layer in decoder_layers(
                transformer
            ):  # each moves to the device as it is sharded: the whole never does
                fully_shard(layer)
            fully_shard(module)
        else:
            module.to(device)
        if self.world > 1 and settings.strategy == "ddp":
            self.model = DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)
        self.learning_rate = settings.learning_rate or _default_rate(transformer)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=settings.weight_decay)

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Forward and backward of a micro-batch run in it. Workers exchange gradients with the last one alone."""
        with self._no_sync() if not last else nullcontext(), self.autocast():
            yield

    def autocast(self) -> AbstractContextManager:
        """The precision of forwards; weights stay as they are."""
        precision = self.settings.precision
        bf16 = has_fast_bfloat16(self.device) if precision == "auto" else precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext()

    def optimizer_step(self) -> float:
        """Clip the gradients, update the weights, and return the gradients' norm before clipping.

        Every worker calls it equally often. Raises UserError where the norm is not finite: then nothing is updated.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * warmup_cosine(self.step, self.num_steps, self.settings.warmup)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # FSDP2 shards it
        grad_norm = float(norm)
        if not isfinite(grad_norm):  # the same on all workers
            raise UserError(
                f"the gradient of step {self.step + 1} is not finite: either the weights that training started from "
                "are broken, or learning_rate is too high"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return grad_norm

    def num_forwards(self, needed: int) -> int:
        """Forwards of this worker in a step that needs so many: at least one.

        With FSDP as many as any worker needs, since each forward gathers the weights from all of them.
        """
        if self.world == 1 or self.settings.strategy == "ddp":
            return max(1, needed)
        most = torch.tensor(max(1, needed), device=self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a value over all workers."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def state(self) -> dict[str, Any]:
        """`model`, `optimizer` and `step`, in full on the CPU of worker 0. A collective call."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        model, optimizer = get_state_dict(self.module, self.optimizer, options=options)
        return {"model": model, "optimizer": optimizer, "step": self.step}

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from a `state`, which every worker passes in full."""
        set_state_dict(
            self.module,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(full_state_dict=True),
        )
        self.step = state["step"]

    def _no_sync(self) -> AbstractContextManager:
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else nullcontext()


def _default_rate(transformer: PreTrainedModel) -> float:
    """By the parameters of the backbone, without adapters."""
    named = list(transformer.base_model.named_parameters())
    adapted = any("lora_" in name for name, _ in named)
    return default_learning_rate(sum(p.numel() for name, p in named if "lora_" not in name), adapted)


def warmup_cosine(step: int, num_steps: int, warmup: float) -> float:
    """The part of the peak learning rate at a step, counted from 0: linear warm-up, then a cosine down to a tenth.

    `warmup` is the part of the steps over which the rate rises.
    """
    warmup_steps = max(1, round(warmup * num_steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return 0.1 + 0.45 * (1 + cos(pi * min(1.0, progress)))


def decoder_layers(transformer: PreTrainedModel) -> list[nn.Module]:
    """The layers of a Hugging Face model: the units that FSDP gathers one after the other."""
    lists = [list(m) for m in transformer.base_model.children() if isinstance(m, nn.ModuleList)]
    return max(lists, key=len, default=[])


def enable_gradient_checkpointing(transformer: PreTrainedModel) -> None:
    # Its name from transformers 5.20 on, and the one before.
    enable = getattr(transformer, "activation_checkpointing_enable", None) or transformer.gradient_checkpointing_enable
    enable()
