"""Models of any size with random weights, for measuring speed."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from rgtg.errors import UserError
from rgtg.models.reward import HEAD

UNKNOWN, BOS, EOS, PAD, FIRST = range(5)


@dataclass(frozen=True)
class Size:
    """The size of each model."""

    hidden: int = 512
    layers: int = 8
    heads: int = 8
    kv_heads: int = 4
    vocabulary: int = 32_000

    def __post_init__(self) -> None:
        if self.hidden % (2 * self.heads) or self.heads % self.kv_heads:
            raise UserError(
                f"a hidden size of {self.hidden} does not fit {self.heads} heads and {self.kv_heads} key-value heads; "
                "take a hidden size that is a multiple of 2 x heads, and heads that are a multiple of key-value heads"
            )
        if self.vocabulary < 2 * FIRST:
            raise UserError(f"the vocabulary of {self.vocabulary} is too small; take at least {2 * FIRST}")


def write(folder: Path, size: Size) -> dict[str, str]:
    """Write a language model, a reward model and one with a token-level head; their directories by name."""
    disable_progress_bar()
    vocab = {f"t{i}": i for i in range(size.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocab, unk_token=f"t{UNKNOWN}"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=f"t{BOS}", eos_token=f"t{EOS}", pad_token=f"t{PAD}"
    )
    config = AutoConfig.for_model(
        "llama",
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 8 // 3 // 32 * 32,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=131_072,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    torch.manual_seed(0)
    made: dict[str, Any] = {"language": AutoModelForCausalLM.from_config(config)}
    made["next-token"] = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    setattr(made["next-token"].config, HEAD, "next-token")
    config.num_labels = 1
    made["reward"] = AutoModelForSequenceClassification.from_config(config)
    for name, model in made.items():
        model.save_pretrained(folder / name)
        wrapped.save_pretrained(folder / name)
    return {name: str(folder / name) for name in made}


def texts(lengths: list[int], vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Token ids drawn at random, one text of each length."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(FIRST, vocabulary, (n,), generator=draw).tolist() for n in lengths]
