"""Rows of preferences/ in the layouts of other trainers: an export is a function here, and a row of EXPORTS.

Every function takes a pair or a ranking and gives the rows of its export. A pair is a ranking of two; where a layout
has room for two sides alone, those of a ranking are its first and its last.

Trainers that read chats alone get a prompt of text as what one user says, as LLaMA-Factory and NeMo-RL do with a
column of text themselves; the chat template then stands between it and the completion. For a plain continuation there
are `sft` and `unpaired`, and preferences/ itself. A prompt that ends with the assistant's words is without them, and
they begin every answer: no trainer has two turns of the assistant in a row.
"""

import json
from typing import Any

import pyarrow as pa

from rgtg.messages import Message, Prompt, user_turn
from rgtg.methods import EXPORTS
from rgtg.schemas import MESSAGES

Row = dict[str, Any]

MESSAGE = MESSAGES.value_type
RANK = pa.struct([("rank", pa.int32()), ("completion", MESSAGES)])

# Ends a line for some readers of JSON lines (`str.splitlines`), or is a terminal's command.
ESCAPED = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}


def rows_of(name: str, row: Row) -> list[Row]:
    """The rows of an export that a row of preferences/ becomes."""
    return globals()[EXPORTS[name].rows](row)


def schema_of(name: str, prompt: pa.DataType) -> pa.Schema:
    """The schema of an export's rows; `prompt` is the type of the run's prompts, text or messages."""
    if name == "sft" and prompt == MESSAGES:
        fields = [("messages", MESSAGES), ("score", pa.float32())]
    elif name == "sft":
        fields = [("prompt", prompt), ("completion", prompt), ("score", pa.float32())]
    elif name == "unpaired":
        fields = [("prompt", prompt), ("completion", prompt), ("label", pa.bool_()), ("score", pa.float32())]
    elif name == "chat-pairs":
        fields = [("prompt", MESSAGES), ("chosen", MESSAGE), ("rejected", MESSAGE)]
        fields += [("conversation", MESSAGES), ("rejected_response", pa.string())]
    elif name == "ranked":
        fields = [("context", MESSAGES), ("completions", pa.list_(RANK))]
    else:
        fields = [("prompt", pa.string()), ("completions", pa.list_(pa.string()))]
        fields += [("labels", pa.list_(pa.bool_())), ("rewards", pa.list_(pa.float32()))]
    return pa.schema([*fields, ("prompt_id", pa.string())])


def sft(row: Row) -> list[Row]:
    """The chosen side alone, the best of a ranking: `messages`, or `prompt` and `completion` of text."""
    (best, score), *_ = _answers(row)
    of_row = {"score": score, "prompt_id": row["prompt_id"]}
    if isinstance(row["prompt"], str):
        return [{"prompt": row["prompt"], "completion": best} | of_row]
    turns, answer = _chat(row["prompt"], best)
    return [{"messages": [*turns, answer]} | of_row]


def unpaired(row: Row) -> list[Row]:
    """`prompt`, `completion` and `label`, of each side a row (TRL's KTO): true of the best, false of the worst."""
    best, *_, worst = _answers(row)
    return [
        {
            **{name: row[name] for name in ("prompt", "prompt_id")},
            "completion": answer if isinstance(row["prompt"], str) else [_assistant(answer)],
            "label": label,
            "score": score,
        }
        for (answer, score), label in ((best, True), (worst, False))
    ]


def chat_pairs(row: Row) -> list[Row]:
    """Sides as one message each behind the turns of `prompt`: LLaMA-Factory (sharegpt with `ranking`), axolotl.

    ms-swift wants the chosen answer as the last of its messages, and `rejected_response`. In the column `messages` the
    other two would take that answer for a turn before the answers, without a word; `conversation` is a name that
    ms-swift knows too, and the others do not.
    """
    (best, _), *_, (worst, _) = _answers(row)
    turns, chosen = _chat(row["prompt"], best)
    _, rejected = _chat(row["prompt"], worst)
    return [
        {
            **{"prompt": turns, "chosen": chosen, "rejected": rejected},
            **{"conversation": [*turns, chosen], "rejected_response": rejected["content"]},
            "prompt_id": row["prompt_id"],
        }
    ]


def ranked(row: Row) -> list[Row]:
    """`context` and `completions` with their `rank`, 0 the best: NeMo-RL."""
    answers = [answer for answer, _ in _answers(row)]
    turns, _ = _chat(row["prompt"], "")
    completions = [{"rank": i, "completion": [_chat(row["prompt"], text)[1]]} for i, text in enumerate(answers)]
    return [{"context": turns, "completions": completions, "prompt_id": row["prompt_id"]}]


def stepwise(row: Row) -> list[Row]:
    """`prompt`, `completions` and `labels` of the steps of each completion a row (TRL, axolotl), and their `rewards`.

    A label says whether the reward rose over the step. `steps` of the row are those of each completion, with
    `rendered`, the prompt as the language model reads it: these trainers know no messages.
    """
    return [
        {
            **{"prompt": row["rendered"], "prompt_id": row["prompt_id"]},
            "completions": [step.text for step in steps],
            "labels": [step.better for step in steps],
            "rewards": [step.reward for step in steps],
        }
        for steps in row["steps"]
    ]


def dataset_info(splits: list[str]) -> dict[str, Any]:
    """LLaMA-Factory's dataset_info.json beside the folders of these splits: `preferences`, and `preferences_test`."""
    names = ("role_tag", "content_tag", "user_tag", "assistant_tag", "system_tag")
    layout = {
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {"messages": "prompt", "chosen": "chosen", "rejected": "rejected"},
        "tags": dict(zip(names, ("role", "content", "user", "assistant", "system"), strict=True)),
    }
    return {
        "preferences" if split == "train" else f"preferences_{split}": {"file_name": split} | layout
        for split in splits
    }


def json_line(row: Row) -> bytes:
    """A row as one line of JSON in UTF-8, for every reader: no character within it ends a line.

    A lone surrogate, which UTF-8 has not and with which pyarrow refuses the whole file, becomes a question mark.
    """
    text = json.dumps(row, ensure_ascii=False, separators=(",", ":")).translate(ESCAPED)
    return text.encode(errors="replace") + b"\n"


def _answers(row: Row) -> list[tuple[str, float]]:
    """The texts of a pair or a ranking with their scores, the best first."""
    if "completions" in row:
        answers, scores = row["completions"], row["scores"]
    else:
        answers, scores = (row["chosen"], row["rejected"]), (row["score_chosen"], row["score_rejected"])
    texts = [answer if isinstance(answer, str) else answer[0]["content"] for answer in answers]
    return list(zip(texts, scores, strict=True))


def _chat(prompt: Prompt, answer: str) -> tuple[list[Message], Message]:
    """The turns before an answer, and the answer as the assistant's one turn."""
    turns = user_turn(prompt) if isinstance(prompt, str) else prompt
    if turns[-1]["role"] == "assistant":
        return turns[:-1], _assistant(turns[-1]["content"] + answer)
    return turns, _assistant(answer)


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
