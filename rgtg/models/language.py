"""The language model: loaded once, never trained."""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from rgtg.errors import UserError
from rgtg.models.attention import ATTENTION
from rgtg.models.loading import (
    check_cacheable,
    context_length,
    is_language_model,
    load_config,
    load_tokenizer,
    load_weights,
    resolve_device,
    resolve_dtype,
)

WHAT = "models.language"


def check_language(path: str, trust_remote_code: bool = False) -> None:
    """Raises UserError unless `path` holds a language model that can be guided. Reads no weights."""
    config = load_config(path, WHAT, trust_remote_code=trust_remote_code)
    check_cacheable(config, WHAT)
    if not is_language_model(config):
        raise UserError(f"{WHAT}: {path!r} holds a {(config.architectures or ['model of unknown architecture'])[0]}")


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer, in eval mode on its device."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(
        cls, path: str, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
    ) -> "LanguageModel":
        """Load a model directory or hub id. Raises UserError, saying why, where that is impossible."""
        check_language(path, trust_remote_code)
        tokenizer = load_tokenizer(path, WHAT, trust_remote_code=trust_remote_code)
        target = resolve_device(device)
        model = load_weights(
            AutoModelForCausalLM,
            path,
            WHAT,
            device=target,
            trust_remote_code=trust_remote_code,
            dtype=resolve_dtype(dtype, target),
            attn_implementation=ATTENTION,
        )
        return cls(model, tokenizer)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def context(self) -> int:
        """Longest sequence in tokens, prompt and completion together."""
        return context_length(self.model.config)

    @property
    def eos_ids(self) -> list[int]:
        """Every token that ends a text: chat models have several."""
        ids = {self.tokenizer.eos_token_id}
        generation = self.model.generation_config
        for source in (self.model.config.eos_token_id, generation and generation.eos_token_id):
            ids.update(source if isinstance(source, list) else [source])
        return sorted(i for i in ids if i is not None)
