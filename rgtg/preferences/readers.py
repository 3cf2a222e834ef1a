"""Rows of the field's preference formats -> `Pair`, or the short reason why a row is none.

Read here, told apart by the columns a row has and by their types:

* TRL: `prompt, chosen, rejected`, or `chosen, rejected` that hold the prompt too; as text or as messages
  (huggingface.co/docs/trl/dataset_formats);
* HH-RLHF transcripts: `chosen, rejected` with turns that open with "\\n\\nHuman:" and "\\n\\nAssistant:";
* "binarized" UltraFeedback (alignment-handbook, distilabel): `prompt` as text, `chosen, rejected` as whole
  conversations, with `score_*` or `*_rating`;
* ranked completions: UltraFeedback's `instruction, completions[{response, overall_score, annotations}]`, or
  `prompt, completions | responses, scores | rewards` as parallel lists; the best is paired with the worst.

Values are plain Python (`pyarrow.Table.to_pylist`): lists and dicts, never arrays.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeGuard

from rgtg.chat import Message, Prompt
from rgtg.input_rows import is_unicode

# fmt: off
PAIR_COLUMNS = frozenset({
    "prompt", "instruction", "chosen", "rejected", "completions", "responses", "scores", "rewards",
    "score_chosen", "score_rejected", "chosen_rating", "rejected_rating",
})
# fmt: on

HUMAN_TURN = "\n\nHuman:"
ASSISTANT_TURN = "\n\nAssistant:"
NOT_SHARED = "the pair does not share its prompt"
TIED = "scores are tied"


@dataclass(frozen=True, slots=True)
class Pair:
    """One preference; `chosen` and `rejected` are the text of the response alone: what follows the rendered prompt."""

    prompt: Prompt
    chosen: str
    rejected: str


class _Unusable(Exception):
    """Ends the reading of one row; its text is the reason. Never leaves this module."""


def read_pair(row: dict[str, Any]) -> Pair | str:
    """The pair of one row of any format above, or the reason why it has none: one of a few constant sentences.

    Never raises, whatever the values of the row.
    """
    try:
        if _first(row, "chosen", "rejected") is not None:
            pair = _read_paired(row)
        elif _first(row, "completions", "responses") is not None:
            pair = _read_ranked(row)
        elif "chosen" in row or "rejected" in row:
            raise _Unusable("chosen is missing")
        else:
            raise _Unusable("there is neither chosen and rejected nor a list of completions")
        if pair.chosen == pair.rejected:
            raise _Unusable("chosen equals rejected")
    except _Unusable as reason:
        return str(reason)
    return pair


def read_pairs(rows: Iterable[dict[str, Any]]) -> tuple[list[Pair], Counter[str]]:
    """The pairs of `rows` in their order, and how many rows were left out for each reason."""
    read = [read_pair(row) for row in rows]
    pairs = [pair for pair in read if isinstance(pair, Pair)]
    return pairs, Counter(reason for reason in read if isinstance(reason, str))


def _read_paired(row: dict[str, Any]) -> Pair:
    chosen = _text_or_messages(row.get("chosen"), "chosen")
    rejected = _text_or_messages(row.get("rejected"), "rejected")
    for better, worse in (("score_chosen", "score_rejected"), ("chosen_rating", "rejected_rating")):
        score = _number(row.get(better))
        if score is not None and score == _number(row.get(worse)):
            raise _Unusable(TIED)
    prompt = _given_prompt(row)
    if prompt is None and "prompt" in row:
        # The column says that the prompt is stated apart; to take it from elsewhere is for the user to decide.
        if all(ASSISTANT_TURN in side if isinstance(side, str) else len(side) > 1 for side in (chosen, rejected)):
            raise _Unusable("prompt is null, but chosen and rejected hold it: drop that column to read them")
        raise _Unusable("prompt is null")
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _split_conversations(prompt, chosen, rejected)
    if isinstance(chosen, list) or isinstance(rejected, list):
        raise _Unusable("one of chosen and rejected is text, the other messages")
    if prompt is not None:
        return Pair(prompt, chosen, rejected)
    if ASSISTANT_TURN in chosen or ASSISTANT_TURN in rejected:
        return _split_transcripts(chosen, rejected)
    return _split_texts(chosen, rejected)


def _split_conversations(prompt: Prompt | None, chosen: list[Message], rejected: list[Message]) -> Pair:
    """Messages on both sides: one assistant message each behind a stated prompt, or whole conversations."""
    contexts = []
    for side, messages in (("chosen", chosen), ("rejected", rejected)):
        if messages[-1]["role"] != "assistant":
            raise _Unusable(f"{side} does not end with an assistant turn")
        contexts.append(messages[:-1])
        # A whole conversation may repeat the prompt that is stated as messages; more than that is no single response.
        if isinstance(prompt, list) and messages[:-1] not in ([], prompt):
            raise _Unusable(f"{side} has several messages behind its prompt")
    if not isinstance(prompt, list):
        if contexts[0] != contexts[1]:
            raise _Unusable(NOT_SHARED)
        # Binarized UltraFeedback: `prompt` is the first user turn only; the conversation also has the system's.
        if contexts[0]:
            prompt = contexts[0]
        elif prompt is not None:
            prompt = _user_turn(prompt)
        else:
            raise _Unusable("there is no prompt: chosen and rejected hold one message each")
    return Pair(prompt, chosen[-1]["content"], rejected[-1]["content"])


def _split_transcripts(chosen: str, rejected: str) -> Pair:
    """HH-RLHF: all up to and with the last "Assistant:" is the prompt; the response keeps the space behind it."""
    (prompt, _, chosen), (other, _, rejected) = (text.rpartition(ASSISTANT_TURN) for text in (chosen, rejected))
    if prompt != other:
        raise _Unusable(NOT_SHARED)
    for side, response in (("chosen", chosen), ("rejected", rejected)):
        if HUMAN_TURN in response:
            raise _Unusable(f"{side} does not end with an assistant turn")
    return Pair(prompt + ASSISTANT_TURN, chosen, rejected)


def _split_texts(chosen: str, rejected: str) -> Pair:
    """The common beginning is the prompt, as in TRL's `extract_prompt`, and the space at its end the responses'.

    Unlike there, it ends before a word that the two share in part ("bl|ue", "bl|ack"), or that ends one of them.
    """
    if chosen == rejected:
        raise _Unusable("chosen equals rejected")
    shorter = min(len(chosen), len(rejected))
    end = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter)
    if not (chosen[end : end + 1].isspace() and rejected[end : end + 1].isspace()):
        while end > 0 and not chosen[end - 1].isspace():
            end -= 1
    if end > 0 and chosen[end - 1] == " ":
        end -= 1
    if end == 0:
        raise _Unusable(NOT_SHARED)
    return Pair(chosen[:end], chosen[end:], rejected[end:])


def _read_ranked(row: dict[str, Any]) -> Pair:
    """The best completion against the worst; of equal ones, the first."""
    prompt = _given_prompt(row)
    if prompt is None:
        raise _Unusable("prompt is missing")
    completions = _first(row, "completions", "responses")
    if not isinstance(completions, list):
        raise _Unusable("completions is not a list")
    if any(isinstance(completion, dict) for completion in completions):
        records = [completion if isinstance(completion, dict) else {} for completion in completions]
        texts = [record.get("response") for record in records]
        scores = [_number(record.get("overall_score")) for record in records]
        if sum(score is not None for score in scores) < 2:  # the two kinds of score differ in scale: never mixed
            scores = [_mean_rating(record.get("annotations")) for record in records]
    else:
        texts = completions
        given = _first(row, "scores", "rewards")
        if not isinstance(given, list) or len(given) != len(texts):
            raise _Unusable("there is not one score for each completion")
        scores = [_number(score) for score in given]
    scored = [(score, text) for score, text in zip(scores, texts, strict=True) if score is not None and _is_text(text)]
    if len(scored) < 2:
        raise _Unusable("fewer than two completions have text and a score")
    best, worst = max(scored, key=lambda pair: pair[0]), min(scored, key=lambda pair: pair[0])
    if best[0] == worst[0]:
        raise _Unusable(TIED)
    return Pair(prompt, best[1], worst[1])


def _mean_rating(annotations: Any) -> float | None:
    """The mean of UltraFeedback's numeric ratings, {aspect: {"Rating": "4"}}; "N/A" and null are left out."""
    if not isinstance(annotations, dict):
        return None
    ratings = [_number(aspect.get("Rating")) for aspect in annotations.values() if isinstance(aspect, dict)]
    known = [rating for rating in ratings if rating is not None]
    return _number(sum(known) / len(known)) if known else None


def _first(row: dict[str, Any], *columns: str) -> Any:
    """The first of `columns` that is there and not null, else None."""
    return next((row[column] for column in columns if row.get(column) is not None), None)


def _given_prompt(row: dict[str, Any]) -> Prompt | None:
    """The prompt that stands in a column of its own; an `instruction` is what a user says, so it becomes a turn."""
    if row.get("prompt") is not None:
        return _text_or_messages(row["prompt"], "prompt")
    if row.get("instruction") is not None:
        instruction = _text_or_messages(row["instruction"], "instruction")
        return _user_turn(instruction) if isinstance(instruction, str) else instruction
    return None


def _user_turn(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _text_or_messages(value: Any, column: str) -> str | list[Message]:
    """`value` if it is valid text, its messages without other fields (Arrow adds nulls) if it is a list of them."""
    if value is None:
        raise _Unusable(f"{column} is missing")
    if isinstance(value, str):
        if not _is_text(value):
            raise _Unusable(f"{column} is not valid Unicode")
        return value
    if not isinstance(value, list):
        raise _Unusable(f"{column} is neither text nor a list of messages")
    if not value:
        raise _Unusable(f"{column} is an empty list")
    for message in value:
        if not (isinstance(message, dict) and _is_text(message.get("role")) and _is_text(message.get("content"))):
            raise _Unusable(f"a message of {column} has no role or no text")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and is_unicode(value)


def _number(value: Any) -> float | None:
    """A finite number, also one written as text ("4"); None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
