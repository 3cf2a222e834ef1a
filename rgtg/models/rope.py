"""Rotary positions whose frequencies transformers chooses by the longest row of a batch: no row may depend on it.

Up to a length the choice is always the same. `longrope` has one set of factors for rows up to the length of the first
training and another one beyond, to which all rows change as soon as one is longer, the keys in their caches excepted;
`dynamic` stretches the positions of all rows when one outgrows the context. So rows end at that length, and the choice
is made once. To make it in every call would also wait for the device.
"""

from typing import Any

from torch import nn
from transformers import PreTrainedConfig


def first_length(config: PreTrainedConfig) -> int | None:
    """Positions with one set of frequencies, where a config says that there is another set beyond them."""
    parameters = getattr(config, "rope_parameters", None) or {}  # or one such dictionary a layer type
    sets = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    lengths = [kind.get("original_max_position_embeddings") for kind in sets if kind.get("rope_type") == "longrope"]
    return min((length for length in lengths if isinstance(length, int) and length > 0), default=None)


def keep_frequencies(model: nn.Module) -> None:
    """Let the rotary embeddings of `model` stay with the frequencies that they were made with, which are the first."""
    module: Any
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, dict):
            module.rope_type = {layer: _kept(name) for layer, name in kind.items()}
        elif isinstance(kind, str):
            module.rope_type = _kept(kind)


def _kept(kind: str) -> str:
    """The name of the same frequencies for a forward that leaves them as they are."""
    return "default" if kind == "longrope" or "dynamic" in kind else kind
