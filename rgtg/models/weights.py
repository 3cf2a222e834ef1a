"""The weights of a model directory, judged by the headers of its safetensors files."""

import json
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rgtg.errors import UserError, first_line
from rgtg.models.description import read_object

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(directory: str, what: str, path: str) -> list[Path]:
    """The weight files that transformers reads.

    Raises UserError where there are none, or an index names files that a digest of the directory does not cover: only
    files in the directory itself count whose names are not hidden.
    """
    if any(Path(directory).glob("shard-*-model-*.safetensors")):  # transformers would read these instead
        raise UserError(f"{what}: {path!r} holds a sharded checkpoint of distributed training; save the whole model")
    whole, index = Path(directory, WEIGHTS), Path(directory, INDEX)
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise UserError(f"{what}: cannot load {path!r}: it has no {WEIGHTS}; pickled and other weights are not read")
    shards = read_object(index, what).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{what}: cannot load {path!r}: its {INDEX} has no weight_map")
    for name in shards.values():
        if not isinstance(name, str) or Path(name).name != name or name.startswith((".", "_")):
            raise UserError(
                f"{what}: the {INDEX} of {path!r} names the file {str(name)[:100]!r}; weights must be in the "
                "model's own directory, with names that do not begin with . or _"
            )
    return [Path(directory, name) for name in sorted(set(shards.values()))]


def count_numbers(directory: str, what: str, path: str) -> int:
    """The number of parameters in all weight files. Raises UserError for a truncated or corrupt file."""
    total = 0
    for file in weight_files(directory, what, path):
        try:
            with safe_open(file, "pt") as tensors:
                total += sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, json.JSONDecodeError) as error:
            raise UserError(f"{what}: cannot load {path!r}: {file.name}: {first_line(error)}") from error
    return total


def check_whole(loaded: dict[str, Any], new: tuple[str, ...], what: str, path: str) -> None:
    """Raises UserError where the checkpoint lacks weights, which transformers has initialized at random.

    `loaded` is the loading report of transformers; names that begin with one of `new` may be missing.
    """
    lacking = sorted(name for name in loaded["missing_keys"] if not name.startswith(new))
    if lacking:
        raise UserError(
            f"{what}: the weights of {path!r} lack {len(lacking)} of the model's ({', '.join(lacking[:3])}); give a "
            "complete checkpoint of this architecture"
        )
