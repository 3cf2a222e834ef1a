"""RewardModel: a causal backbone that gives the rewards of ALL prefixes of a text by one forward.

Three heads, told apart by the model's config:

* `scalar`: a Hugging Face sequence classifier with one label; the reward of a prefix is `score(hidden)` at its last
  token, taken by position. transformers' own pooled logit searches for the last token that is not padding, and so
  scores a finished text one token early where padding is the EOS.
* `next-token`, a token-level head: a causal language model whose logits are rewards. The reward of a prefix is the
  logit of its last token one position earlier, so that one forward of a prefix gives the rewards of all its
  continuations by one token (FaRMA, arXiv 2502.04517).
* `log-probability`: the same with log-probabilities, which are summed over the response (GenARM, arXiv 2410.08193).
"""

from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from rgtg.errors import UserError
from rgtg.methods import Head
from rgtg.models.adapters import Adapters
from rgtg.models.attention import ATTENTION
from rgtg.models.loading import (
    check_cacheable,
    context_length,
    is_language_model,
    load_config,
    load_tokenizer,
    load_weights,
)
from rgtg.models.packed import pack, packed
from rgtg.models.pad_token import ADDED_PAD, with_pad_token, without_pad_token
from rgtg.text_score import FINAL, check_way

HEAD = "rgtg_reward_head"  # in config.json of a causal language model that is a reward model
SCORE = "rgtg_score"  # there too: how the rewards of a text's prefixes become its score; see text_score.py


class RewardModel(nn.Module):
    """Rewards of all prefixes by one forward of a causal backbone (PARGS, arXiv 2406.07780)."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, head_kind: Head = "scalar") -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer = tokenizer
        self.saved_tokenizer = tokenizer  # with a padding token; `tokenizer` lacks one that we added
        self.head_kind = head_kind
        self.adapters: Adapters | None = None
        self.packed_head: nn.Module | None = None

    def add_adapters(self, rank: int, alpha: float) -> None:
        """Train only low-rank adapters of the backbone, and the head."""
        self.adapters = Adapters(self.backbone, rank, alpha)

    @staticmethod
    def check(path: str, what: str, trust_remote_code: bool = False, head: Head | None = None) -> Head | None:
        """The head of the reward model at `path`; None for a language model, to start one from. Reads no weights.

        Raises UserError for a model that is neither, a classifier with several labels, or a reward model with another
        head than `head`.
        """
        config = load_config(path, what, trust_remote_code=trust_remote_code)
        check_cacheable(config, what)
        architecture = (config.architectures or ["model of unknown architecture"])[0]
        found: Head | None = "scalar"
        if is_language_model(config):
            found = _own_head(config)
        elif not architecture.endswith("ForSequenceClassification"):
            raise UserError(f"{what}: {path!r} holds a {architecture}")
        elif config.num_labels != 1:
            raise UserError(
                f"{what}: {path!r} is a classifier with {config.num_labels} labels; a reward model has num_labels=1"
            )
        if found and head and found != head:
            raise UserError(f"{what}: {path!r} is a reward model with a {found} head, and a {head} head is needed")
        if (found or head or "scalar") == "scalar":
            _check_scores_every_position(config, what, trust_remote_code)
        try:
            check_way(getattr(config, SCORE, FINAL))
        except (TypeError, ValueError) as error:
            raise UserError(f"{what}: the config.json of {path!r} is wrong: {error}") from error
        return found

    @classmethod
    def load(
        cls,
        path: str,
        *,
        head: Head | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        trust_remote_code: bool = False,
        what: str = "models.reward",
    ) -> "RewardModel":
        """Load a reward model, or start one from a language model with a new `head` (by default a scalar one).

        Raises UserError as `check`.
        """
        found = cls.check(path, what, trust_remote_code, head)
        kind: Head = found or head or "scalar"
        tokenizer = load_tokenizer(path, what, trust_remote_code=trust_remote_code)
        auto = AutoModelForSequenceClassification if kind == "scalar" else AutoModelForCausalLM
        options = {"num_labels": 1} if kind == "scalar" else {}
        verbosity = hf_logging.get_verbosity()
        hf_logging.set_verbosity_error()  # that a language model lacks the head is expected
        try:
            model = load_weights(
                auto,
                path,
                what,
                device=device,
                trust_remote_code=trust_remote_code,
                dtype=dtype,
                attn_implementation=ATTENTION,
                new=() if found or kind != "scalar" else ("score.",),
                **options,
            )
        finally:
            hf_logging.set_verbosity(verbosity)
        if not found:
            _new_head(model, kind)
        padded = getattr(model.config, ADDED_PAD, False)
        reward_model = cls(model, without_pad_token(tokenizer) if padded else tokenizer, kind)
        reward_model.saved_tokenizer = tokenizer
        if kind == "scalar" and (head or not found):  # to be trained and saved
            reward_model.saved_tokenizer = with_pad_token(model, tokenizer)
        return reward_model

    @property
    def context(self) -> int:
        return context_length(self.model.config)

    @property
    def backbone(self) -> PreTrainedModel:
        return self.model.base_model

    @property
    def head(self) -> nn.Linear:
        return self.model.score if self.head_kind == "scalar" else self.model.get_output_embeddings()

    def pack(self) -> None:
        """For inference only: pack linear layers, so that a row rounds alike at every position of a batch."""
        pack(self.backbone)
        if self.adds_up:  # the plain head stays: single columns of it are read
            self.packed_head = packed(self.head)

    @property
    def score_way(self) -> str:
        """How the rewards of a text's prefixes become its score. Sums have counted every token already."""
        return FINAL if self.adds_up else getattr(self.model.config, SCORE, FINAL)

    @score_way.setter
    def score_way(self, way: str) -> None:
        setattr(self.model.config, SCORE, check_way(way))

    @property
    def adds_up(self) -> bool:
        """Whether the reward of a prefix is the sum over its tokens."""
        return self.head_kind == "log-probability"

    def forward(self, input_ids: Tensor, prompt_lengths: Tensor | None = None, best_next: bool = False) -> Tensor:
        """Rewards (B, T) in float32 of all prefixes of right-padded ids (B, T); those of padding mean nothing.

        Rewards that add up are summed from the end of the prompt, of `prompt_lengths` (B,); prefixes of it have 0.
        With `best_next` the shape is (2, B, T): the second part is the largest reward of each prefix with one more
        token. No attention mask is needed: a causal model never sees the padding on its right.
        """
        hidden = self.backbone(input_ids=input_ids, use_cache=False).last_hidden_state
        if self.head_kind == "scalar":
            return self.score(hidden)
        rewards = self.next_token_rewards(hidden[:, :-1], input_ids[:, 1:, None])[..., 0]
        rewards = nn.functional.pad(rewards, (1, 0))  # there is no token before the first one
        if self.adds_up:
            if prompt_lengths is not None:
                position = torch.arange(input_ids.shape[1], device=input_ids.device)
                rewards = rewards * (position >= prompt_lengths[:, None])
            rewards = rewards.cumsum(-1)
        return torch.stack([rewards, self.head(hidden).float().amax(-1)]) if best_next else rewards

    def score(self, hidden: Tensor) -> Tensor:
        """Rewards (...) of hidden states (..., H) by a scalar head.

        Always in float32: bfloat16 has two to three digits, and guidance and margins are differences of rewards.
        """
        rewards = (hidden.float() * self.head.weight.float()[0]).sum(-1)
        return rewards if self.head.bias is None else rewards + self.head.bias.float()

    def next_token_rewards(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Rewards (..., k) in float32 of `tokens` (..., k) as next tokens of prefixes with hidden states (..., H).

        Rewards that add up are those of the token alone, without the prefix.
        """
        rewards = (hidden[..., None, :].float() * self.head.weight[tokens].float()).sum(-1)
        if self.adds_up:
            rewards = rewards - (self.packed_head or self.head)(hidden).float().logsumexp(-1, keepdim=True)
        return rewards

    def save(self, directory: str | Path, state: dict[str, Tensor] | None = None) -> None:
        """Write model and tokenizer to a directory that plain transformers loads.

        It is a sequence classifier, or with a token-level head a causal language model. `state` is the full state dict
        of this module where training has sharded it.
        """
        if self.adapters:
            state = self.adapters.merged(state or self.state_dict())
        weights = state and {name.removeprefix("model."): value for name, value in state.items()}
        self.model.save_pretrained(directory, state_dict=weights)
        self.saved_tokenizer.save_pretrained(directory)


def check_trained(path: str, trust_remote_code: bool = False) -> Head:
    """The head of a reward model. Raises UserError for a language model, whose new head would be untrained."""
    head = RewardModel.check(path, "models.reward", trust_remote_code)
    if head is None:
        raise UserError(f"models.reward: {path!r} is a language model; train a reward model from it first")
    return head


def check_same_tokens(language: PreTrainedTokenizerBase, reward: PreTrainedTokenizerBase) -> None:
    """Raises UserError unless every token id has the same meaning in both models: candidates are scored by id."""
    ours, theirs = language.get_vocab(), reward.get_vocab()
    differing = [token for token, i in ours.items() if theirs.get(token) != i]
    if differing:
        raise UserError(
            f"models.reward has another tokenizer than models.language ({len(differing)} of {len(ours)} tokens "
            f"differ, such as {differing[0]!r}); train the reward model from this language model, or have it read "
            "text (models.reward_reads=text), which is slower"
        )


def _own_head(config: PreTrainedConfig) -> Head | None:
    """The reward head that the config of a causal language model names; None for a plain language model."""
    head = getattr(config, HEAD, None)
    return head if head in get_args(Head) else None


def _check_scores_every_position(config: PreTrainedConfig, what: str, trust_remote_code: bool) -> None:
    with torch.device("meta"):  # its modules without their weights
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trust_remote_code)
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise UserError(
            f"{what}: a {config.model_type!r} classifier has no head that scores every position; use a causal "
            "backbone (Llama, Qwen, Mistral, GPT-2 and their like)"
        )


def _new_head(model: Any, kind: Head) -> None:
    """Give the model a head to train. It starts at zero, so that all prefixes start with the same reward and no noise.

    A log-probability head starts as the language model's own, as published.
    """
    if kind == "scalar":
        nn.init.zeros_(model.score.weight)
        return
    old = model.get_output_embeddings()
    like = {"dtype": old.weight.dtype, "device": old.weight.device}
    head = nn.Linear(old.in_features, old.out_features, bias=False, **like)
    with torch.no_grad():
        head.weight.copy_(old.weight if kind == "log-probability" else torch.zeros_like(old.weight))
    # Untied from the input embeddings, which many models share with it.
    model.set_output_embeddings(head)
    model.config.tie_word_embeddings = False
    setattr(model.config, HEAD, kind)
