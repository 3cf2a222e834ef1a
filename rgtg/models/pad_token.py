"""The padding token of a reward model: not EOS, so that plain transformers scores a finished text alike."""

import copy
import json
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# In config.json: the tokenizer's last token is PAD_TOKEN, which no text may contain.
ADDED_PAD = "rgtg_added_pad_token"
PAD_TOKEN = "<|pad|>"


def with_pad_token(model: Any, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer whose padding token is not EOS, so that plain transformers scores a finished text as we do.

    The model gets an embedding of zeros for it where it has none.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer = copy.deepcopy(tokenizer)
        if tokenizer.add_special_tokens({"pad_token": PAD_TOKEN}):
            setattr(model.config, ADDED_PAD, True)
    known = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        with torch.random.fork_rng(devices=[]), torch.no_grad():  # it initializes the rows at random
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            model.get_input_embeddings().weight[known:] = 0
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return tokenizer


def without_pad_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer of training, to which the text of the added padding token is ordinary text."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return tokenizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != PAD_TOKEN]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = None
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))  # type: ignore[assignment]
    return tokenizer
