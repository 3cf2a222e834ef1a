"""How much memory decoding takes, from the configs of the models alone: before a weight is read."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig

from rgtg.models.cache import ROW_MULTIPLE, SlotCache
from rgtg.models.loading import is_language_model

META = torch.device("meta")
USABLE = 0.9  # of what is free; activations, logits and what an allocator loses take the rest


@dataclass(frozen=True)
class Plan:
    weights: int  # bytes of all models
    slot: int  # bytes of keys and values of one completion at its longest, in all models
    free: int  # bytes of the device; 0 where that is unknown

    def fitting(self, slots: int) -> int:
        """Of `slots`, as many as there is room for, by a number that the engine takes; 0 where one is too many."""
        room = max(0, int((self.free * USABLE - self.weights) // max(self.slot, 1)))
        if not self.free or room >= slots:
            return slots
        return room // ROW_MULTIPLE * ROW_MULTIPLE or min(room, 1)

    def __str__(self) -> str:
        of = f" of {_gib(self.free)}" if self.free else ""
        return f"{_gib(self.weights)} for weights and at most {_gib(self.slot)} a slot{of}"


def plan(
    cached: Iterable[PreTrainedConfig],
    others: Iterable[PreTrainedConfig],
    length: int,
    dtype: torch.dtype,
    free: int = 0,
) -> Plan:
    """For models with a slot cache and models without, and completions of `length` tokens with their prompts."""
    cached = list(cached)
    weights = sum(num_parameters(config) for config in [*cached, *others]) * dtype.itemsize
    return Plan(weights, sum(_row_bytes(config, length, dtype) for config in cached), free)


def num_parameters(config: PreTrainedConfig) -> int:
    auto = AutoModelForCausalLM if is_language_model(config) else AutoModelForSequenceClassification
    with META:
        model = auto.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def _row_bytes(config: PreTrainedConfig, length: int, dtype: torch.dtype) -> int:
    cache = SlotCache(config, 1, dtype=dtype, device=META)
    cache.reserve(length)
    return cache.keys.nbytes + cache.values.nbytes


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device: of a CPU the machine's, or the rest of its container's share."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = 0
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    with suppress(OSError, ValueError):  # "max" where there is no limit
        limit, used = (int(Path("/sys/fs/cgroup", f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used)
    return free


def _gib(number: int) -> str:
    return f"{number / 2**30:.2f} GiB"
