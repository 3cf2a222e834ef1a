"""Prompts and responses to token ids: text or messages, by each model's own chat template, with at most one BOS.

A chat template writes all special tokens of a conversation, so that the tokenizer adds none to what it has rendered
(the same as `tokenizer.apply_chat_template(messages, tokenize=True)`). To text the tokenizer adds its own.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date
from functools import lru_cache
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from rgtg.errors import RowError, UserError, first_line
from rgtg.input_rows import is_unicode
from rgtg.messages import Prompt
from rgtg.templates import renderer

THINK = "<think>"  # by which reasoning models open their thoughts, some of them in the generation prompt

MAX_TEXT = 1 << 23  # characters that are tokenized; a context of a million tokens has about four million


def check_prompt(prompt: Any) -> str | None:
    """Why `prompt` is not a prompt (text, or a list of {role, content}); None where it is one."""
    if prompt is None:
        return "the prompt is null"
    if isinstance(prompt, str):
        return None if is_unicode(prompt) else "the prompt is not valid Unicode (it holds a lone surrogate)"
    if not isinstance(prompt, list):
        return f"the prompt is of type {type(prompt).__name__}, not text or a list of messages"
    if not prompt:
        return "the prompt is an empty list of messages"
    for i, message in enumerate(prompt):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            return f"message {i} of the prompt has no role and content"
        for field in ("role", "content"):
            if not isinstance(message[field], str):
                return f"the {field} of message {i} of the prompt is {type(message[field]).__name__}, not text"
            if not is_unicode(message[field]):
                return f"the {field} of message {i} of the prompt is not valid Unicode (it holds a lone surrogate)"
    return None


def prompt_id(prompt: Prompt) -> str:
    """The SHA-256 (hex) of the canonical prompt: the text itself, or its messages as compact JSON."""
    if isinstance(prompt, str):
        canonical = prompt
    else:
        messages = [{"role": m["role"], "content": m["content"]} for m in prompt]
        canonical = json.dumps(messages, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()


class Rendered(NamedTuple):
    """The text of a prompt as a model reads it."""

    text: str
    by_template: bool  # with all special tokens


def control_token(tokenizer: PreTrainedTokenizerBase, text: str) -> str | None:
    """The first of the tokenizer's control tokens (BOS, EOS, chat markers) that `text` spells out, if any."""
    found = _control_tokens(tokenizer).search(text)
    return found[0] if found else None


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """A pattern of any control token; of two that begin alike the longer one."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special} - {""}
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")


def render(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, day: date | None = None) -> str:
    """The text that a model reads: messages rendered by its own chat template, plain text unchanged.

    `day` is the date for templates that write one, by default today.

    Raises UserError for messages where the tokenizer has no chat template or a broken one, RowError where the template
    refuses the messages, or needs too much time or memory for them, and for a message that spells out a control token:
    it would end its turn, or open another.
    """
    if isinstance(prompt, str):
        return prompt
    for message in prompt:
        if token := control_token(tokenizer, message["content"]):
            raise RowError(f"a message of the prompt holds the control token {token!r}")
    if not tokenizer.chat_template:
        raise UserError(
            f"the prompt is a list of messages but the tokenizer of {tokenizer.name_or_path!r} has no chat template; "
            "give prompts as text, or a model with a template"
        )
    # The model continues the last message of a conversation that ends with the assistant.
    goes_on = prompt[-1]["role"] == "assistant"
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:  # several templates without a default
        raise UserError(f"the chat template of {tokenizer.name_or_path!r}: {first_line(error)}") from error
    messages = [{key: value for key, value in message.items() if value is not None} for message in prompt]
    options = {
        **tokenizer.special_tokens_map,
        "add_generation_prompt": not goes_on,
        "continue_final_message": goes_on,
    }
    return renderer.render(template, messages, day or date.today(), options, tokenizer.name_or_path)


def check_template(tokenizer: PreTrainedTokenizerBase, day: date | None = None) -> None:
    """Raises UserError for a chat template that is missing, broken, or too slow for any messages."""
    with suppress(RowError):  # a template may refuse a single word
        render(tokenizer, [{"role": "user", "content": "word"}], day)


def rendered(tokenizer: PreTrainedTokenizerBase, prompt: Prompt | Rendered, day: date | None = None) -> Rendered:
    """A prompt as `render` writes it, to be encoded several times."""
    if isinstance(prompt, Rendered):
        return prompt
    return Rendered(render(tokenizer, prompt, day), by_template=isinstance(prompt, list))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt | Rendered, day: date | None = None) -> list[int]:
    """Token ids of a prompt as the model expects it: at least one, with at most one BOS. `day` as for `render`.

    Raises RowError for text on which the tokenizer fails, and for an empty prompt where the vocabulary has no BOS: the
    first token of a completion needs a token before it.
    """
    return _encode(tokenizer, rendered(tokenizer, prompt, day))


def encode_response(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt | Rendered,
    response: str,
    *,
    complete: bool = True,
    day: date | None = None,
) -> list[int]:
    """Token ids of `response` after `prompt`, with a final EOS if `complete`.

    Both are tokenized together, so that the response gets the ids a model would generate there (SentencePiece
    tokenizers put a space before a separate text). Where tokens merge across the boundary, the prompt keeps its ids,
    as it does in decoding. Where a template has opened the model's thinking, and the response opens it once more, as
    many data sets do, the second opening is left out.
    """
    before = rendered(tokenizer, prompt, day)
    response = _without_second_opening(before, response)
    prompt_ids = _encode(tokenizer, before)
    joint = _encode(tokenizer, before._replace(text=before.text + response))
    if joint[: len(prompt_ids)] == prompt_ids:
        ids = joint[len(prompt_ids) :]
    else:
        with tokenizing():
            ids = tokenizer(response, add_special_tokens=False).input_ids
    if complete and tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids = [*ids, tokenizer.eos_token_id]
    return ids


def _without_second_opening(before: Rendered, response: str) -> str:
    opening, body = before.text.rstrip(), response.lstrip()
    if not (before.by_template and opening.endswith(THINK) and body.startswith(THINK)):
        return response
    body = body.removeprefix(THINK)
    return body.removeprefix("\n") if before.text.endswith("\n") else body


def decode_response(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], response_ids: list[int]) -> str:
    """The text of generated ids, without special tokens, with the space that separates it from the prompt."""
    context = prompt_ids[-8:]  # enough to show a tokenizer that this is not the start of a text
    with tokenizing():
        before = str(tokenizer.decode(context, skip_special_tokens=True))
        both = str(tokenizer.decode([*context, *response_ids], skip_special_tokens=True))
        if both.startswith(before):
            return both[len(before) :]
        return str(tokenizer.decode(response_ids, skip_special_tokens=True))


@contextmanager
def tokenizing() -> Iterator[None]:
    """Raise failures of a tokenizer on a text as RowError; Rust code may panic, as over a regular expression."""
    try:
        yield
    except BaseException as error:  # a panic is not an Exception, and its class cannot be imported
        if isinstance(error, Exception) or type(error).__name__ != "PanicException":
            raise
        raise RowError(f"the tokenizer fails on the text: {first_line(error)}") from None


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: Rendered) -> list[int]:
    text = prompt.text
    if len(text) > MAX_TEXT:  # it takes 300 bytes a character and cannot be interrupted
        raise RowError(f"the text has {len(text)} characters, more than {MAX_TEXT}")
    bos = tokenizer.bos_token_id
    with tokenizing():
        ids = tokenizer(text, add_special_tokens=not prompt.by_template).input_ids
    eos = tokenizer.eos_token_id
    if ids and ids[-1] == eos and not text.endswith(tokenizer.eos_token or "\0"):
        ids = ids[:-1]  # some tokenizers append an EOS to every text; a prompt needs none
    if bos is not None and bos != eos:
        while ids[:2] == [bos, bos]:  # one of the template, another of the tokenizer
            ids = ids[1:]
    if not ids:
        start = bos if bos is not None else eos
        if start is None:
            raise RowError("the prompt is empty and the model has no BOS token to start from")
        ids = [start]
    return ids
