"""The memory that decoding takes, computed from the models' configs before any weight is read."""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig

from rgtg.models.attention import view_length
from rgtg.models.cache import SlotCache
from rgtg.models.loading import is_language_model
from rgtg.models.packed import can_pack
from rgtg.models.shapes import SLOT_MULTIPLE, round_up

META = torch.device("meta")

# The part of a GPU's memory that weights and caches may take; activations, logits and fragmentation have the rest.
# Measured as the peak against the plan: `make test-gpu`.
USABLE = 0.9


@dataclass(frozen=True)
class Plan:
    weights: int  # bytes of all models
    slot: int  # bytes of keys and values of one completion at its longest, of all models
    memory: int  # bytes of the device; 0 where that is unknown
    prompts: int = 0  # bytes of the cached prompts at their longest
    growing: int = 0  # additional bytes per slot while a cache grows

    def fitting(self, slots: int) -> int:
        """The largest number up to `slots` that fits and that the engine takes; 0 where not even one slot fits."""
        free = self.memory * USABLE - self.weights - self.prompts
        room = max(0, int(free // max(self.slot + self.growing, 1)))
        needed = round_up(slots, SLOT_MULTIPLE) if slots > 1 else slots
        if not self.memory or room >= needed:
            return slots
        return room // SLOT_MULTIPLE * SLOT_MULTIPLE or min(room, 1)

    def __str__(self) -> str:
        of = f" of {_gib(self.memory)}" if self.memory else ""
        slot = _gib(self.slot + self.growing)
        return f"{_gib(self.weights + self.prompts)} for weights and prompts, and at most {slot} a slot{of}"


def plan(
    models: Iterable[tuple[PreTrainedConfig, int]],
    dtype: torch.dtype,
    device: torch.device,
    *,
    memory: int = 0,
    held: int = 0,
    trust_remote_code: bool = False,
) -> Plan:
    """The plan for models, each with the longest text (in tokens) of a slot of its cache; 0 for one without a cache.

    `held` tokens of prompts are cached beside the longest one. On a GPU caches have their full length from the start;
    elsewhere they grow, one tensor after the other, and then the keys (or the values) exist twice.
    """
    weights = slot = prompts = growing = 0
    for config, length in models:
        packs = device.type == "cpu" and can_pack(dtype)
        weights += num_parameters(config, trust_remote_code, untied=packs) * dtype.itemsize
        if length:
            layers, rows, heads, _, size = SlotCache(config, 1, dtype=dtype, device=META).keys.shape
            token = 2 * layers * rows * heads * size * dtype.itemsize
            row = token * view_length(length, device)
            slot, growing = slot + row, max(growing, row // 2)
            prompts += token * (held + length)
    return Plan(weights, slot, memory, prompts, 0 if device.type == "cuda" else growing)


def backbone_parameters(config: PreTrainedConfig, trust_remote_code: bool = False) -> int:
    """Parameters of the model without its head."""
    return int(_without_weights(config, trust_remote_code).base_model.num_parameters())


def num_parameters(config: PreTrainedConfig, trust_remote_code: bool = False, *, untied: bool = False) -> int:
    """Parameters of the model; `untied` where packing copies an output layer that shares the embeddings."""
    model = _without_weights(config, trust_remote_code)
    number = sum(parameter.numel() for parameter in model.parameters())
    if untied and is_language_model(config):
        head = model.get_output_embeddings().weight
        number += head.numel() * (head is model.get_input_embeddings().weight)
    return number


def _without_weights(config: PreTrainedConfig, trust_remote_code: bool) -> Any:
    auto = AutoModelForCausalLM if is_language_model(config) else AutoModelForSequenceClassification
    with META:
        return auto.from_config(config, trust_remote_code=trust_remote_code)


def memory_of(device: torch.device) -> int:
    """Bytes of a device in total; for a CPU, of the machine or the limit of its container.

    The total and not the free memory: a run that is resumed must have as many slots as before.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    memory = 0
    with suppress(OSError, ValueError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # the file says "max" where there is no limit
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory


def _gib(number: int) -> str:
    return f"{number / 2**30:.2f} GiB"
