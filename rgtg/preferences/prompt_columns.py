"""Where the prompt of a pair stands: in one of several columns, or as the turns before its answers."""

from typing import Any

from rgtg.messages import Prompt, Unusable, system_of, text_or_messages, user_turn, with_system

# Where a prompt may stand. Text in the first one goes before the response as it is; in the others it is a user's turn.
PROMPTS = ("prompt", "instruction", "question", "query", "input", "context", "history")
CONVERSATIONS = ("messages", "conversations", "conversation", "trajectory")


def given_prompt(row: dict[str, Any]) -> Prompt | None:
    """The prompt that stands in a column of its own, with the system's turn where there is one.

    Text of `prompt` is what goes before the response. Text of other columns is what a user says, and becomes a turn.
    """
    given = {
        column: text_or_messages(row[column], column)
        for column in PROMPTS
        if row.get(column) not in (None, "") and (row[column] != [] or column == "prompt")
    }
    if list(given) == ["instruction", "input"] and all(isinstance(value, str) for value in given.values()):
        given = {"instruction": f"{given['instruction']}\n{given['input']}"}  # Alpaca
    if len({repr(value) for value in given.values()}) > 1:
        raise Unusable(f"{' and '.join(given)} could each be the prompt, or a part of it: leave one of them")
    if not given and row.get("prompt") == "":
        return with_system("", system_of(row))
    whole = all(isinstance(row.get(side), list) and len(row[side]) > 1 for side in ("chosen", "rejected"))
    if not given and "prompt" not in row and not whole:
        turns = [column for column in CONVERSATIONS if row.get(column)]
        given = {column: text_or_messages(row[column], column) for column in turns[:1]}
    for column, prompt in given.items():
        if column != "prompt" and isinstance(prompt, str):
            prompt = user_turn(prompt)
        return with_system(prompt, system_of(row))
    return None
