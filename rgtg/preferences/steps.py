"""A completion as steps, lines and sentences, each with the reward of the text up to its end.

A reward stands behind a token, so that a step ends with the token that holds its last character.
"""

import re
from collections.abc import Sequence
from datetime import date
from typing import Any, NamedTuple

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from rgtg.chat import render
from rgtg.messages import Prompt

# What closes a step: line ends, full stops before a space, and those of scripts that write no space behind them.
CLOSES = re.compile(r"""\n+|[.!?…]+["'”’)\]]*(?=[ \t])|[。！？]+[」』”’]*""")


class Step(NamedTuple):
    text: str
    reward: float  # of the prompt and all steps up to this one
    better: bool  # whether the reward rose over it


def stepped(
    tokenizer: PreTrainedTokenizerFast, prompt: Prompt, completions: Sequence[dict[str, Any]], day: date
) -> dict[str, Any]:
    """What the export `stepwise` needs of a prompt: `rendered`, the text that the language model has read (trainers
    add the BOS), and the `steps` of each completion that has the rewards of its tokens. `day` is as for `render`.
    """
    found = [
        steps_of(tokenizer, c["text"], c["token_ids"], c["token_rewards"]) for c in completions if c["token_rewards"]
    ]
    text = render(tokenizer, prompt, day)
    if not isinstance(prompt, str):
        text = text.removeprefix(tokenizer.bos_token or "")
    return {"rendered": text, "steps": [steps for steps in found if steps]}


def steps_of(
    tokenizer: PreTrainedTokenizerFast, text: str, token_ids: Sequence[int], rewards: Sequence[float]
) -> list[Step] | None:
    """The steps of a completion, whose texts make up `text`; None where its tokens are not told apart in it.

    `rewards` (n,) are those of the prefixes that end with each of the n tokens. The first step is compared with its
    first token: the reward of the bare prompt is not known.
    """
    ends = token_ends(tokenizer, text, token_ids)
    if ends is None:
        return None
    steps, start, before = [], 0, rewards[0]
    for token in _last_tokens(text, ends):
        steps.append(Step(text[start : ends[token]], rewards[token], rewards[token] > before))
        start, before = ends[token], rewards[token]
    return steps


def token_ends(tokenizer: PreTrainedTokenizerFast, text: str, token_ids: Sequence[int]) -> list[int] | None:
    """Where in `text`, which the tokens spell, each of them ends (n,); that of a part of a character where the whole
    ones before it end, and that of the last one at the end. None where they do not spell it one after another.
    """
    stream, backend = DecodeStream(skip_special_tokens=True), tokenizer.backend_tokenizer
    spelled, lengths = "", []
    for token in token_ids:
        spelled += stream.step(backend, token) or ""
        lengths.append(len(spelled))
    # Without the prompt before it, a tokenizer leaves out the first space; at the end there may be half a character.
    before = text.find(spelled)
    if before < 0 or text[:before].strip() or text[before + len(spelled) :].strip("\ufffd"):
        return None
    return [*(before + length for length in lengths[:-1]), len(text)]


def _last_tokens(text: str, ends: list[int]) -> list[int]:
    """The last token of each step; a step of white space alone is the beginning of the next one."""
    found, start, token = [], 0, 0
    last = len(ends) - 1
    for close in CLOSES.finditer(text):
        while ends[token] < close.end():
            token += 1
        if token < last and text[start : ends[token]].strip() and text[ends[token] :].strip():
            found.append(token)
            start = ends[token]
    return [*found, last]
