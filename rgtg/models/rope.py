"""Rotary embeddings whose frequencies transformers chooses by the longest row of a batch: no row may depend on that.

Up to a certain length the choice is fixed. `longrope` has one set of factors for rows up to the original training
length and another beyond, to which all rows switch as soon as one is longer, while cached keys stay; `dynamic`
stretches the positions of all rows when one exceeds the context. So rows end at that length, and the choice is made
once. Choosing in every call would also wait for the device.
"""

from typing import Any

from torch import nn
from transformers import PreTrainedConfig


def first_length(config: PreTrainedConfig) -> int | None:
    """The length up to which the first set of frequencies holds, where a config has a second set; else None."""
    parameters = getattr(config, "rope_parameters", None) or {}  # or one such dictionary a layer type
    sets = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    lengths = [kind.get("original_max_position_embeddings") for kind in sets if kind.get("rope_type") == "longrope"]
    return min((length for length in lengths if isinstance(length, int) and length > 0), default=None)


def keep_frequencies(model: nn.Module) -> None:
    """Keep the rotary embeddings of `model` at their initial frequencies, the first set."""
    module: Any
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, dict):
            module.rope_type = {layer: _kept(name) for layer, name in kind.items()}
        elif isinstance(kind, str):
            module.rope_type = _kept(kind)


def _kept(kind: str) -> str:
    """A rope type whose forward leaves the frequencies as they are."""
    return "default" if kind == "longrope" or "dynamic" in kind else kind
