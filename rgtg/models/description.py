"""What a model directory says of its model: checked before transformers builds anything from it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from rgtg.errors import UserError, first_line

MAX_CONFIG, MAX_TOKENIZER = 16 << 20, 512 << 20  # bytes; the largest tokenizers of the field have some 40 MB
MAX_LAYERS, MAX_SIZE = 1000, 1 << 24

# Keys by which transformers is led to other files than those that are checked and that a digest covers.
NAMES_FILES = {
    "config.json": ("transformers_weights", "configuration_files"),
    "tokenizer_config.json": ("fast_tokenizer_files",),
}
# Files of which a tokenizer is made, one or two of them.
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
    """Raises UserError for a config.json that no model can be built from, and for files beyond all measure."""
    if Path(directory, "adapter_config.json").is_file():
        raise UserError(
            f"{what}: {path!r} has both a config.json and an adapter_config.json; keep the weights of one of them"
        )
    config = read_object(Path(directory, "config.json"), what)
    _check_names_no_file("config.json", config, what, path)
    if config.get("quantization_config") is not None:
        raise UserError(f"{what}: the weights of {path!r} are quantised; give the model with its plain ones")
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
    """Raises UserError for tokenizer files beyond all measure, and for a tokenizer_config.json that names others."""
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
                    f"{what}: the {name} of {path!r} says by {key!r} that the model is in files of other names; give "
                    "them their usual names, and take the key out"
                )


def read_object(path: Path, what: str) -> dict[str, Any]:
    """A file with one JSON object. Raises UserError for any other, with a sentence that names it."""
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise ValueError(f"it is larger than {MAX_CONFIG >> 20} MiB")
        value = json.loads(path.read_bytes(), object_pairs_hook=_once)
        if not isinstance(value, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{what}: cannot load {str(path.parent)!r}: its {path.name}: {first_line(error)}") from error
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {name!r} is there twice")
    return found


def _fault(config: dict[str, Any]) -> str | None:
    """What is wrong with the sizes of a model, or with the ids and names in its config."""
    for name, most in SIZES.items():
        value = config.get(name)
        if value is not None and (type(value) is not int or not 0 < value <= most):
            return f"{name} is {_short(value)}, not a number from 1 to {most}"
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return f"architectures is {_short(names)}, not a list of names"
    width, heads = (next((config[name] for name in names if config.get(name)), None) for names in (WIDTHS[:2], HEADS))
    if width and heads and width % heads and not config.get("head_dim"):
        return f"{width} hidden units are shared by {heads} heads, which does not divide"
    shared = config.get("num_key_value_heads")
    if heads and shared and heads % shared:
        return f"{heads} heads share {shared} of keys and values, which does not divide"
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
