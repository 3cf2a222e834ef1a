"""What loading a language model and a reward model have in common: devices, dtypes, clear refusals."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers.models import WordPiece
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from rgtg.errors import UserError, first_line
from rgtg.models import adapters
from rgtg.models.description import TOKENIZERS, check_description, check_tokenizer
from rgtg.models.hub import local_directory
from rgtg.models.rope import first_length, keep_frequencies
from rgtg.models.weights import check_whole, count_numbers

MAX_WORD = 1000  # characters; tokenizers usually allow 100
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where available. Raises UserError for a device that is unknown or absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"models.device is {name!r} but torch {torch.__version__} sees no CUDA device; use cpu or auto"
        )
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"the device {name!r} is unknown; there are auto, cpu and cuda")
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a CUDA device that has it, float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and has_fast_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise UserError(f"the dtype {name!r} is unknown; there are auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are much faster there than in float32: tensor cores, or AMX on a CPU."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and bool(_capabilities().get("amx_bf16"))


def slow_bfloat16(setting: str, device: torch.device) -> str | None:
    """A warning for a `setting` that asks for bfloat16 on a CPU without units for it.

    With AVX512_BF16 alone it is about as fast as in float32 (measured), which needs no warning. To measure it again:
    `rgtg benchmark decoding --dtype bfloat16`.
    """
    found = _capabilities()
    if device.type != "cpu" or not found or found.get("amx_bf16") or found.get("avx512_bf16"):
        return None
    return f"{setting}: this CPU has no bfloat16 units, so bfloat16 is about four times slower than float32"


def _capabilities() -> dict[str, Any]:
    """The features of this CPU as torch reports them; nothing in older releases."""
    tell = getattr(torch.cpu, "get_capabilities", None)
    return tell() if tell else {}


def load_config(path: str, what: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of the model at `path`. Raises UserError, before any weight is read, where there is none."""
    directory = local_directory(path, what)
    if adapters.is_adapter(directory):
        base, classifies = adapters.describe(directory, what)
        of_base = f"{what} (base of the adapters in {path!r})"
        if adapters.is_adapter(local_directory(base, of_base)):  # adapters on adapters might form a circle
            raise UserError(f"{of_base}: {base!r} holds adapters too; merge those first")
        config = load_config(base, of_base, trust_remote_code=trust_remote_code)
        if classifies and is_language_model(config):
            config.architectures, config.num_labels = ["AdaptersForSequenceClassification"], 1
        return config
    if not Path(directory, "config.json").is_file():
        raise UserError(f"{what}: {path!r} has no config.json; give a Hugging Face model directory or a hub id")
    check_description(directory, what, path)
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except Exception as error:  # a config class may raise anything for a wrong field
        raise UserError(f"{what}: cannot load {path!r}: {first_line(error)}") from error
    # Left to transformers: a repository name here would make it download and run native code.
    config._attn_implementation = config._experts_implementation = None
    return config


def load_tokenizer(path: str, what: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    directory = local_directory(path, what)
    if adapters.is_adapter(directory) and not Path(directory, "tokenizer_config.json").is_file():
        directory = local_directory(adapters.describe(directory, what)[0], what)
    check_tokenizer(directory, what, path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers raises Exception itself
        reason = first_line(error)
        if not any(
            Path(directory, name).is_file() for name in TOKENIZERS
        ):  # transformers would list its own ways to make one
            reason = "it has no tokenizer.json; save the model's tokenizer there"
        raise UserError(f"{what}: cannot load the tokenizer of {path!r}: {reason}") from error
    if (longest := _longest_word(tokenizer)) > MAX_WORD:
        raise UserError(
            f"{what}: the tokenizer of {path!r} takes words of {longest} characters (max_input_chars_per_word), for "
            f"which its time grows quadratically; give one of at most {MAX_WORD}"
        )
    config = load_config(path, what, trust_remote_code=trust_remote_code)
    known, last = getattr(config.get_text_config(), "vocab_size", None), max(tokenizer.get_vocab().values(), default=0)
    if known and last >= known:
        token = tokenizer.convert_ids_to_tokens(last)
        raise UserError(
            f"{what}: the tokenizer of {path!r} has the token {token!r} with id {last}, and the model knows {known} "
            "tokens; give the tokenizer that the model was trained with"
        )
    return tokenizer


def _longest_word(tokenizer: PreTrainedTokenizerBase) -> int:
    """Characters of the longest word that WordPiece splits; 0 for other tokenizers, whose time is linear."""
    model = tokenizer.backend_tokenizer.model if isinstance(tokenizer, PreTrainedTokenizerFast) else None
    return model.max_input_chars_per_word if isinstance(model, WordPiece) else 0


def load_weights(
    auto_class: Any,
    path: str,
    what: str,
    *,
    device: torch.device | str,
    trust_remote_code: bool = False,
    new: tuple[str, ...] = (),
    num_labels: int | None = None,
    **options,
):
    """A model in eval mode, from safetensors only: nothing of a model directory is unpickled.

    On a GPU weights are loaded one by one, since a machine may have less host memory than the models of its actors.
    Raises UserError where weights are missing whose names begin with none of `new`.
    """
    disable_progress_bar()  # the bars of all actors and workers would fill a job's log
    directory = local_directory(path, what, weights=True)
    if adapters.is_adapter(directory):
        base, _ = adapters.describe(directory, what)
        given = adapters.heads(directory, what)
        options |= {"device": device, "trust_remote_code": trust_remote_code, "num_labels": num_labels}
        options["new"] = new + given
        model = load_weights(auto_class, base, what, **options)
        return adapters.merge_into(model, directory, what).eval()
    config = load_config(path, what, trust_remote_code=trust_remote_code)
    if num_labels:
        config.num_labels = num_labels
    _check_size(config, count_numbers(directory, what, path), what, path)
    options |= {"use_safetensors": True, "trust_remote_code": trust_remote_code, "config": config}
    device = torch.device(device)
    if device.type == "cuda":
        options["device_map"] = {"": device}
    try:
        model, loaded = auto_class.from_pretrained(directory, output_loading_info=True, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{what}: cannot load {path!r}: {first_line(error)}") from error
    check_whole(loaded, new, what, path)
    keep_frequencies(model)
    return model.eval().to(device)


def _check_size(config: PreTrainedConfig, stored: int, what: str, path: str) -> None:
    """Raises UserError where a config describes a far larger model than the weights: it would fill the memory."""
    text = config.get_text_config()
    width, layers = getattr(text, "hidden_size", 0) or 0, getattr(text, "num_hidden_layers", 0) or 0
    least = layers * width * width  # a lower bound for attention and feed-forward layers
    if least > 4 * stored:
        raise UserError(
            f"{what}: the config.json of {path!r} describes {layers} layers of {width}, and its weights have "
            f"{stored} numbers; give a complete checkpoint"
        )


def check_cacheable(config: PreTrainedConfig, what: str) -> None:
    """Raises UserError for an architecture whose keys and values the slot cache cannot hold."""
    if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "num_attention_heads"):
        raise UserError(f"{what}: {config.model_type!r} is not a decoder-only transformer")
    if getattr(config, "attn_logit_softcapping", None) or config.model_type == "gpt_oss":
        raise UserError(f"{what}: attention of {config.model_type!r} has soft-capping or sinks, and cannot be guided")
    layers = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if layers:
        raise UserError(f"{what}: {config.model_type!r} has {', '.join(sorted(layers))} layers, and cannot be guided")


def num_embeddings(model: Any) -> int:
    """The number of token ids that a model knows: often more than its tokenizer has."""
    return int(model.get_input_embeddings().num_embeddings)


def is_language_model(config: PreTrainedConfig) -> bool:
    return (config.architectures or [""])[0].endswith(("ForCausalLM", "LMHeadModel"))


def context_length(config: PreTrainedConfig) -> int:
    """Positions that a model can use.

    With sliding windows those of one window, within which it attends to everything; with two sets of rotary
    frequencies those of the first one.
    """
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 20
    positions = min(positions, first_length(config) or positions)
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) is not False:
        return min(positions, window)
    return positions
