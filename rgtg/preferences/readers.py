"""Rows of the field's preference formats -> `Pair`, or the short reason why a row is none.

Read here, told apart by the columns a row has and by their types:

* TRL: `prompt, chosen, rejected`, or `chosen, rejected` that hold the prompt too; as text or as messages
  (huggingface.co/docs/trl/dataset_formats);
* other names of the prompt: `question`, `query`, `input`, `context`, `history`, `instruction` (and `input`, as in
  Alpaca), or the turns before the answers as `messages`, `conversations`, `conversation` or `trajectory`; and a
  `system` or `system_prompt` beside any of them;
* HH-RLHF transcripts: `chosen, rejected` with turns that open with "\\n\\nHuman:" and "\\n\\nAssistant:";
* "binarized" UltraFeedback (alignment-handbook, distilabel): `prompt` as text, `chosen, rejected` as whole
  conversations, with `score_*` or `*_rating`;
* ms-swift: `messages` that end with the chosen answer, and `rejected_response`;
* ranked completions: UltraFeedback's `instruction, completions[{response, overall_score, annotations}]`, NeMo-RL's
  `context, completions[{rank, completion}]`, or `prompt, completions | responses | generations, scores | rewards |
  ratings` as parallel lists; the best is paired with the worst.

Messages may be written in any of the ways of `rgtg/messages.py`. Values are plain Python (`pyarrow.Table.to_pylist`):
lists and dicts, never arrays.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from rgtg.input_rows import is_unicode
from rgtg.messages import (
    SYSTEMS,
    Message,
    Prompt,
    Unusable,
    read_messages,
    system_of,
    text_or_messages,
    user_turn,
    with_system,
)
from rgtg.preferences.prompt_columns import CONVERSATIONS, PROMPTS, given_prompt

LISTS = ("completions", "responses", "generations")
SCORES = ("scores", "rewards", "ratings")
PAIRED_SCORES = (("score_chosen", "score_rejected"), ("chosen_rating", "rejected_rating"))

PAIR_COLUMNS = frozenset(
    {
        *PROMPTS,
        *CONVERSATIONS,
        *SYSTEMS,
        *LISTS,
        *SCORES,
        *("chosen", "rejected", "rejected_response"),
        *(column for columns in PAIRED_SCORES for column in columns),
    }
)

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
    guessed: bool = field(default=False, compare=False)  # the prompt: it is the common beginning of two texts


def read_pair(row: dict[str, Any]) -> Pair | str:
    """The pair of one row of any format above, or the reason why it has none: one of a few constant sentences.

    Never raises, whatever the values of the row.
    """
    try:
        if _first(row, "chosen", "rejected") is not None:
            pair = _read_paired(row)
        elif _first(row, *LISTS) is not None:
            pair = _read_ranked(row)
        elif row.get("rejected_response") is not None:
            pair = _read_swift(row)
        elif "chosen" in row or "rejected" in row:
            raise Unusable("chosen is missing")
        else:
            raise Unusable("there is neither chosen and rejected nor a list of completions")
        _check_sides(pair)
    except Unusable as reason:
        return str(reason)
    return pair


def _check_sides(pair: Pair) -> None:
    """What differs by nothing that a reader sees carries no preference."""
    if pair.chosen == pair.rejected:
        raise Unusable("chosen equals rejected")
    for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if not text.strip():
            raise Unusable(f"{side} is empty or white space")
    if _visible(pair.chosen) == _visible(pair.rejected):
        raise Unusable("chosen and rejected differ in white space at their ends, line ends or Unicode form alone")


def read_pairs(rows: Iterable[dict[str, Any]]) -> tuple[list[Pair], Counter[str]]:
    """The pairs of `rows` in their order, and how many rows were left out for each reason."""
    read = [read_pair(row) for row in rows]
    pairs = [pair for pair in read if isinstance(pair, Pair)]
    return pairs, Counter(reason for reason in read if isinstance(reason, str))


def _read_paired(row: dict[str, Any]) -> Pair:
    chosen = text_or_messages(row.get("chosen"), "chosen")
    rejected = text_or_messages(row.get("rejected"), "rejected")
    for better, worse in PAIRED_SCORES:
        scores = _number(row.get(better)), _number(row.get(worse))
        if scores[0] is not None and scores[1] is not None and scores[0] <= scores[1]:
            raise Unusable(TIED if scores[0] == scores[1] else f"{better} is below {worse}")
    prompt = given_prompt(row)
    if prompt is None and "prompt" in row:
        # The column says that the prompt is stated apart; to take it from elsewhere is for the user to decide.
        if all(ASSISTANT_TURN in side if isinstance(side, str) else len(side) > 1 for side in (chosen, rejected)):
            raise Unusable("prompt is null, but chosen and rejected hold it: drop that column to read them")
        raise Unusable("prompt is null")
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _split_conversations(prompt, chosen, rejected, system_of(row))
    if isinstance(chosen, list) or isinstance(rejected, list):
        raise Unusable("one of chosen and rejected is text, the other messages")
    if prompt is not None:
        return Pair(prompt, chosen, rejected)
    if system_of(row):
        raise Unusable("there is a system column and no prompt")
    if ASSISTANT_TURN in chosen or ASSISTANT_TURN in rejected:
        return _split_transcripts(chosen, rejected)
    return _split_texts(chosen, rejected)


def _split_conversations(
    prompt: Prompt | None, chosen: list[Message], rejected: list[Message], system: str | None
) -> Pair:
    """Messages on both sides: one assistant message each behind a stated prompt, or whole conversations."""
    contexts = []
    for side, messages in (("chosen", chosen), ("rejected", rejected)):
        if messages[-1]["role"] != "assistant":
            raise Unusable(f"{side} does not end with an assistant turn")
        contexts.append(messages[:-1])
        # A whole conversation may repeat the prompt that is stated as messages; more than that is no single response.
        if isinstance(prompt, list) and messages[:-1] not in ([], prompt, _without_system(prompt)):
            raise Unusable(f"{side} has several messages behind its prompt")
    if not isinstance(prompt, list):
        if contexts[0] != contexts[1]:
            raise Unusable(NOT_SHARED)
        # Binarized UltraFeedback: `prompt` is the first user turn only; the conversation also has the system's.
        if contexts[0]:
            prompt = with_system(contexts[0], system)
        elif prompt is not None:
            prompt = user_turn(prompt)
        else:
            raise Unusable("there is no prompt: chosen and rejected hold one message each")
    return Pair(prompt, chosen[-1]["content"], rejected[-1]["content"])


def _split_transcripts(chosen: str, rejected: str) -> Pair:
    """HH-RLHF: all up to and with the last "Assistant:" is the prompt; the response keeps the space behind it."""
    (prompt, _, chosen), (other, _, rejected) = (text.rpartition(ASSISTANT_TURN) for text in (chosen, rejected))
    if prompt != other:
        raise Unusable(NOT_SHARED)
    for side, response in (("chosen", chosen), ("rejected", rejected)):
        if HUMAN_TURN in response:
            raise Unusable(f"{side} does not end with an assistant turn")
    return Pair(prompt + ASSISTANT_TURN, chosen, rejected)


def _split_texts(chosen: str, rejected: str) -> Pair:
    """The common beginning is the prompt, as in TRL's `extract_prompt`, and the space at its end the responses'.

    Unlike there, it ends before a word that the two share in part ("bl|ue", "bl|ack"), or that ends one of them.
    """
    if chosen == rejected:
        raise Unusable("chosen equals rejected")
    shorter = min(len(chosen), len(rejected))
    end = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter)
    if not (chosen[end : end + 1].isspace() and rejected[end : end + 1].isspace()):
        while end > 0 and not chosen[end - 1].isspace():
            end -= 1
    if end > 0 and chosen[end - 1] == " ":
        end -= 1
    if end == 0:
        raise Unusable(NOT_SHARED)
    return Pair(chosen[:end], chosen[end:], rejected[end:], guessed=True)


def _read_swift(row: dict[str, Any]) -> Pair:
    """ms-swift: the last of `messages` is the chosen answer, and the rejected one stands apart."""
    prompt = text_or_messages(row.get("messages"), "messages")
    if not isinstance(prompt, list) or len(prompt) < 2 or prompt[-1]["role"] != "assistant":
        raise Unusable("messages beside rejected_response do not end with an assistant turn")
    rejected = row["rejected_response"]
    if not _is_text(rejected):
        raise Unusable("rejected_response is not text")
    return Pair(with_system(prompt[:-1], system_of(row)), prompt[-1]["content"], rejected)


def _read_ranked(row: dict[str, Any]) -> Pair:
    """The best completion against the worst; of equal ones, the first."""
    prompt = given_prompt(row)
    if prompt is None:
        raise Unusable("prompt is missing")
    completions = _first(row, *LISTS)
    if not isinstance(completions, list):
        raise Unusable("completions is not a list")
    if any(isinstance(completion, dict) for completion in completions):
        records = [completion if isinstance(completion, dict) else {} for completion in completions]
        texts = [record.get("response", _only_answer(record.get("completion"))) for record in records]
        scores = [_number(record.get("overall_score")) for record in records]
        if sum(score is not None for score in scores) < 2:  # the two kinds of score differ in scale: never mixed
            scores = [_mean_rating(record.get("annotations")) for record in records]
        if not any(score is not None for score in scores):  # NeMo-RL: the first rank is the best
            ranks = [_number(record.get("rank")) for record in records]
            scores = [None if rank is None else -rank for rank in ranks]
    else:
        texts = [_only_answer(completion) for completion in completions]
        given = _first(row, *SCORES)
        if not isinstance(given, list) or len(given) != len(texts):
            raise Unusable("there is not one score for each completion")
        scores = [_number(score) for score in given]
    scored = [(score, text) for score, text in zip(scores, texts, strict=True) if score is not None and _is_text(text)]
    if len(scored) < 2:
        raise Unusable("fewer than two completions have text and a score")
    best, worst = max(scored, key=lambda pair: pair[0]), min(scored, key=lambda pair: pair[0])
    if best[0] == worst[0]:
        raise Unusable(TIED)
    return Pair(prompt, best[1], worst[1])


def _only_answer(completion: Any) -> Any:
    """The text of a completion that is one message of the assistant; text as it is."""
    if not isinstance(completion, list):
        return completion
    messages = read_messages(completion, "a completion")
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise Unusable("a completion is not one message of the assistant")
    return messages[0]["content"]


def _visible(text: str) -> str:
    return unicodedata.normalize("NFC", text).replace("\r\n", "\n").strip()


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


def _without_system(messages: list[Message]) -> list[Message]:
    return messages[1:] if messages[0]["role"] == "system" else messages


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
