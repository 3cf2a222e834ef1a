"""TextReward: any text classifier as a reward model, whatever its tokenizer and architecture, by plain forwards."""

from datetime import date
from typing import Any

import torch
from torch.nn.attention import sdpa_kernel
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from rgtg.chat import Prompt, render, tokenizing
from rgtg.errors import UserError
from rgtg.models.attention import BACKENDS
from rgtg.models.loading import (
    context_length,
    load_config,
    load_tokenizer,
    load_weights,
    resolve_device,
    resolve_dtype,
)
from rgtg.models.shapes import right_padded, round_up

# Texts of a forward. Not measured: similar lengths go together, so that a larger batch saves no padding.
BATCH = 16

# In decoding, widths of a forward are multiples of this: rounding depends on the shape, and a text must not depend on
# others. By arithmetic 16 tokens of padding on average, and 16 shapes up to 512 tokens.
WIDTH_MULTIPLE = 32


class TextReward:
    """Rewards of whole texts, encoded from scratch by the model's own tokenizer: for encoders and other vocabularies.

    The reward is the logit of a classifier with one label, or the second logit minus the first of one with two.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, day: date | None = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.day = day or date.today()
        # The positions of RoBERTa and its relatives start after the padding id.
        offset = 2 if model.config.model_type in ("roberta", "xlm-roberta", "camembert", "longformer") else 0
        self.context = context_length(model.config) - offset

    @staticmethod
    def check(path: str, what: str, trust_remote_code: bool = False) -> None:
        """Raises UserError unless `path` holds a text classifier with one or two labels. Reads no weights."""
        config = load_config(path, what, trust_remote_code=trust_remote_code)
        architecture = (config.architectures or ["model of unknown architecture"])[0]
        if not architecture.endswith("ForSequenceClassification") or config.num_labels not in (1, 2):
            raise UserError(
                f"{what}: {path!r} holds a {architecture} with {config.num_labels} labels; a reward model is a "
                "sequence classifier with one label, or two"
            )
        load_tokenizer(path, what, trust_remote_code=trust_remote_code)

    @classmethod
    def load(
        cls,
        path: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        trust_remote_code: bool = False,
        what: str,
        day: date | None = None,
    ) -> "TextReward":
        """Load a classifier. `day` is the date for chat templates that write one, by default today."""
        cls.check(path, what, trust_remote_code)
        target = resolve_device(device)
        model = load_weights(
            AutoModelForSequenceClassification,
            path,
            what,
            device=target,
            trust_remote_code=trust_remote_code,
            dtype=resolve_dtype(dtype, target),
            num_labels=load_config(path, what, trust_remote_code=trust_remote_code).num_labels,
        )
        return cls(model, load_tokenizer(path, what, trust_remote_code=trust_remote_code), day)

    def score(self, prompts: list[Prompt], completions: list[str]) -> list[float]:
        """Rewards of completions after their prompts. A text longer than the context is cut at the front."""
        return self.score_texts([self.prompt(p) + text for p, text in zip(prompts, completions, strict=True)])

    def prompt(self, prompt: Prompt) -> str:
        """A prompt as the model reads it: messages rendered by its own chat template."""
        return render(self.tokenizer, prompt, self.day)

    def score_texts(self, texts: list[str]) -> list[float]:
        """Rewards of whole texts."""
        ids = [self.encode(text) for text in texts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # similar lengths together: little padding
        rewards = [0.0] * len(ids)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            for row, reward in zip(rows, self.forward([ids[row] for row in rows]), strict=True):
                rewards[row] = reward
        return rewards

    def forward_texts(self, texts: list[str]) -> list[float]:
        """Rewards of whole texts by one forward of a rounded-up width."""
        return self.forward([self.encode(text) for text in texts], multiple=WIDTH_MULTIPLE)

    @torch.inference_mode()
    def forward(self, ids: list[list[int]], multiple: int = 1) -> list[float]:
        """Rewards of token ids, in one forward."""
        width = min(round_up(max(map(len, ids)), multiple), self.context)
        pad = self.model.config.get_text_config().pad_token_id
        batch = right_padded(ids, width, 0 if pad is None else pad).to(self.model.device)
        mask = right_padded([[1] * len(tokens) for tokens in ids], width).to(self.model.device)
        head = getattr(self.model, "score", None)
        with sdpa_kernel(BACKENDS):
            if isinstance(
                head, torch.nn.Linear
            ):  # a causal classifier: by position, since pooling mistakes EOS for padding
                hidden = self.model.base_model(input_ids=batch, attention_mask=mask).last_hidden_state
                last = mask.sum(-1) - 1
                logits = head(hidden[torch.arange(len(ids), device=last.device), last])
            else:
                logits = self.model(input_ids=batch, attention_mask=mask).logits
        logits = logits.float()
        return (logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]).tolist()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, cut at the front to the context. Raises RowError where the tokenizer fails."""
        with tokenizing():
            ids = self.tokenizer(text).input_ids or [0]
        first = (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id)
        if len(ids) > 1 and ids[0] == ids[1] and ids[0] in first:  # one of the template, another of the tokenizer
            ids = ids[1:]
        if len(ids) > self.context and ids[0] in first:  # encoders pool the first token
            return [ids[0], *ids[len(ids) - self.context + 1 :]]
        return ids[-self.context :]
