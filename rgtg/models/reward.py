"""RewardModel: a Hugging Face sequence-classification backbone whose head scores EVERY position.

The reward of a prefix is `score(hidden)` at the prefix's last token, taken by position. transformers' own pooled logit
looks for the last token that is not padding and so scores a finished text one token early where padding is the EOS.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from rgtg.errors import UserError
from rgtg.models.cache import ATTENTION
from rgtg.models.loading import (
    check_cacheable,
    context_length,
    is_language_model,
    load_config,
    load_tokenizer,
    load_weights,
)

PAD_TOKEN = "<|pad|>"


class RewardModel(nn.Module):
    """Scalar rewards of all prefixes by one forward of a causal backbone (PARGS, arXiv 2406.07780)."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer = tokenizer

    @staticmethod
    def check(place: str, what: str, trust_remote_code: bool = False) -> bool:
        """Whether `place` is a reward model already, or a language model to start one from; no weights are read.

        Raises UserError for a directory that is neither, or a classifier with more labels than one.
        """
        config = load_config(place, what, trust_remote_code=trust_remote_code)
        check_cacheable(config, what)
        architecture = (config.architectures or ["model of unknown architecture"])[0]
        classifier = architecture.endswith("ForSequenceClassification")
        if classifier and config.num_labels != 1:
            raise UserError(
                f"{what}: {place!r} is a classifier with {config.num_labels} labels; a reward model has num_labels=1"
            )
        if not classifier and not is_language_model(config):
            raise UserError(f"{what}: {place!r} holds a {architecture}")
        with torch.device("meta"):  # its modules without their weights
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trust_remote_code)
        if not isinstance(getattr(model, "score", None), nn.Linear):
            raise UserError(
                f"{what}: a {config.model_type!r} classifier has no head that scores every position; use a causal "
                "backbone (Llama, Qwen, Mistral, GPT-2 and their like)"
            )
        return classifier

    @classmethod
    def load(
        cls,
        place: str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        trust_remote_code: bool = False,
        what: str = "models.reward",
    ) -> "RewardModel":
        """Load a reward model, or start one from a language model with a new head. Raises UserError as `check`."""
        classifier = cls.check(place, what, trust_remote_code)
        tokenizer = load_tokenizer(place, what, trust_remote_code=trust_remote_code)
        verbosity = hf_logging.get_verbosity()
        hf_logging.set_verbosity_error()  # that the head of a language model is new is no news here
        try:
            model = load_weights(
                AutoModelForSequenceClassification,
                place,
                what,
                trust_remote_code=trust_remote_code,
                num_labels=1,
                dtype=dtype,
                attn_implementation=ATTENTION,
            )
        finally:
            hf_logging.set_verbosity(verbosity)
        _give_pad_token(model, tokenizer)
        if not classifier:
            # Zero at first: every prefix starts at the same reward, instead of at the noise of a random head.
            nn.init.zeros_(model.score.weight)
        return cls(model.to(device), tokenizer)

    @property
    def context(self) -> int:
        return context_length(self.model.config)

    @property
    def backbone(self) -> PreTrainedModel:
        return self.model.base_model

    @property
    def head(self) -> nn.Linear:
        return self.model.score

    def forward(self, input_ids: Tensor) -> Tensor:
        """Rewards (B, T) in float32 of every prefix of right-padded ids (B, T); those of padding mean nothing.

        No attention mask is needed: a causal model never sees the padding on its right.
        """
        return self.score(self.backbone(input_ids=input_ids, use_cache=False).last_hidden_state)

    def score(self, hidden: Tensor) -> Tensor:
        """Rewards (B, T) of hidden states (B, T, H), in float32 whatever they are: bfloat16 has two digits, and
        differences of rewards are what guidance and margins are made of.
        """
        rewards = (hidden.float() * self.head.weight.float()[0]).sum(-1)
        return rewards if self.head.bias is None else rewards + self.head.bias.float()

    def save(self, directory: str | Path, state: dict[str, Tensor] | None = None) -> None:
        """Write a directory that `AutoModelForSequenceClassification.from_pretrained` loads, with the tokenizer.

        `state` is the state dict of this module where training has sharded its own.
        """
        weights = state and {name.removeprefix("model."): value for name, value in state.items()}
        self.model.save_pretrained(directory, state_dict=weights)
        self.tokenizer.save_pretrained(directory)


def check_trained(place: str, trust_remote_code: bool = False) -> None:
    """Raises UserError unless `place` is a reward model already: a language model's new head would guide nowhere."""
    if not RewardModel.check(place, "models.reward", trust_remote_code):
        raise UserError(f"models.reward: {place!r} is a language model; train a reward model from it first")


def check_same_tokens(language: PreTrainedTokenizerBase, reward: PreTrainedTokenizerBase) -> None:
    """Raises UserError unless every token id means the same to both models, as scoring candidates by id requires."""
    ours, theirs = language.get_vocab(), reward.get_vocab()
    differing = [token for token, i in ours.items() if theirs.get(token) != i]
    if differing:
        raise UserError(
            f"models.reward has another tokenizer than models.language ({len(differing)} of {len(ours)} tokens "
            f"differ, such as {differing[0]!r}); train the reward model from this language model"
        )


def _give_pad_token(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """A padding token that is no EOS, so that the saved model scores a finished text alike in plain transformers."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
