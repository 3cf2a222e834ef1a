"""Checks of the JSON files of a model directory, before transformers builds anything from them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from rgtg.errors import UserError, first_line

MAX_CONFIG, MAX_TOKENIZER = 16 << 20, 512 << 20  # bytes; the largest known tokenizers have about 40 MB
MAX_LAYERS, MAX_SIZE = 1000, 1 << 24

# Keys that make transformers read other files than those that are checked here and covered by a digest.
NAMES_FILES = {
    "config.json": ("transformers_weights", "configuration_files"),
    "tokenizer_config.json": ("fast_tokenizer_files",),
}
# Files that a tokenizer is loaded from: one or two of them.
TOKENIZERS = (
    *("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tekken.json", "tiktoken.model"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "num_key_value_heads")
WIDTHS = ("hidden_size", "n_embd", "head_dim")
POSITIONS = ("max_position_embeddings", "n_positions")
SIZES = {
    **dict.fromkeys(LAYERS, MAX_LAYERS),
    **dict.fromkeys((*HEADS, *WIDTHS, "vocab_size", "num_labels"), MAX_SIZE),
    **dict.fromkeys((*POSITIONS, "sliding_window"), 1 << 31),
}


def check_description(directory: str, what: str, path: str) -> None:
    """Raises UserError for a config.json that no model can be built from, and for files of absurd size."""
    if Path(directory, "adapter_config.json").is_file():
        raise UserError(
            f"{what}: {path!r} has both a config.json and an adapter_config.json; remove the model or the adapters"
        )
    config = read_object(Path(directory, "config.json"), what)
    _check_names_no_file("config.json", config, what, path)
    if config.get("quantization_config") is not None:
        raise UserError(f"{what}: the weights of {path!r} are quantized; give the model with unquantized weights")
    generation = Path(directory, "generation_config.json")
    said: dict[str, list[Any]] = {
        "config.json": [config, config.get("text_config")],
        generation.name: [read_object(generation, what)] if generation.is_file() else [],
    }
    for name, sections in said.items():
        for section in sections:
            if isinstance(section, dict) and (fault := _fault(section)):
                raise UserError(f"{what}: the {name} of {path!r} says {fault}")


def check_tokenizer(directory: str, what: str, path: str) -> None:
    """Raises UserError for tokenizer files of absurd size, and for a tokenizer_config.json that names other files."""
    for name in TOKENIZERS:
        file = Path(directory, name)
        if file.is_file() and file.stat().st_size > MAX_TOKENIZER:
            raise UserError(f"{what}: the {name} of {path!r} is larger than {MAX_TOKENIZER >> 20} MiB")
    config = Path(directory, "tokenizer_config.json")
    if config.is_file():
        _check_names_no_file(config.name, read_object(config, what), what, path)


def _check_names_no_file(name: str, config: dict[str, Any], what: str, path: str) -> None:
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in NAMES_FILES[name]:
            if section.get(key) is not None:
                raise UserError(
                    f"{what}: the key {key!r} in the {name} of {path!r} names other files; rename the files to their "
                    "usual names and remove the key"
                )


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError, naming the file, where it holds anything else."""
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise ValueError(f"it is larger than {MAX_CONFIG >> 20} MiB")
        value = json.loads(path.read_bytes(), object_pairs_hook=_once)
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{what}: cannot load {str(path.parent)!r}: its {path.name}: {first_line(error)}") from error
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {name!r} appears twice")
    return found


def _fault(config: dict[str, Any]) -> str | None:
    """The first mistake in the sizes, ids or names of a model's config; None where there is none."""
    for name, most in SIZES.items():
        value = config.get(name)
        if value is not None and (type(value) is not int or not 0 < value <= most):
            return f"{name} is {_short(value)}, not a number from 1 to {most}"
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return f"architectures is {_short(names)}, not a list of names"
    width, heads = (next((config[name] for name in names if config.get(name)), None) for names in (WIDTHS[:2], HEADS))
    if width and heads and width % heads and not config.get("head_dim"):
        return f"hidden size {width} is not divisible by {heads} heads"
    shared = config.get("num_key_value_heads")
    if heads and shared and heads % shared:
        return f"{heads} heads are not divisible by {shared} heads of keys and values"
    pad, vocabulary = config.get("pad_token_id"), config.get("vocab_size")
    if pad is not None and (type(pad) is not int or (vocabulary and not -1 <= pad < vocabulary)):
        return f"pad_token_id is {_short(pad)}, and there are {vocabulary} tokens"
    ends = config.get("eos_token_id")
    if any(type(end) is not int for end in (ends if isinstance(ends, list) else [ends]) if end is not None):
        return f"eos_token_id is {_short(ends)}, not a token id or a list of them"
    for name in ("dtype", "torch_dtype"):
        value = config.get(name)
        if value not in (None, "auto") and not (
            isinstance(value, str) and isinstance(getattr(torch, value.removeprefix("torch."), None), torch.dtype)
        ):
            return f"{name} is {_short(value)}, which torch does not know"
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 50 else f"{text[:47]}..."
