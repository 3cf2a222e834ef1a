"""Messages as the field's files hold them -> [{role, content}], or the reason why they are none.

Beside {role, content} with text these are read: ShareGPT's {from, value}, content as a list of text parts, one message
that stands alone, and JSON text of any of them. What else a message carries (tool calls, names, images) would be lost
on the way to the model's template, so that it is refused by name; null and empty values carry nothing.
"""

import json
from typing import Any

from rgtg.input_rows import is_unicode

Message = dict[str, str]
Prompt = str | list[Message]

SYSTEMS = ("system", "system_prompt")  # columns of a system's turn that stands apart

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}  # others are called as in {role, content}


class Unusable(Exception):
    """Raised for a value that holds no text or messages; its text is the reason, one of a few constant sentences."""


def text_or_messages(value: Any, what: str) -> Prompt:
    """`value` if it is valid text, or its messages, which JSON text may hold too. Raises Unusable, which calls it
    `what`.
    """
    if value is None:
        raise Unusable(f"{what} is missing")
    if not isinstance(value, str):
        return read_messages(value, what)
    if not is_unicode(value):
        raise Unusable(f"{what} is not valid Unicode")
    written = _messages_in_text(value, what)
    return value if written is None else read_messages(written, what)


def read_messages(value: Any, what: str) -> list[Message]:
    """The messages of `value`, a list of them or a single one. Raises Unusable, which calls them `what`."""
    given = [value] if isinstance(value, dict) else value
    if not isinstance(given, list):
        raise Unusable(f"{what} is neither text nor a list of messages")
    if not given:
        raise Unusable(f"{what} is an empty list")
    return [_message(one, what) for one in given]


def user_turn(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def system_of(row: dict[str, Any]) -> str | None:
    """The system's turn that stands in a column of its own. Raises Unusable."""
    system = next((row[column] for column in SYSTEMS if row.get(column) not in (None, "")), None)
    if system is not None and not (isinstance(system, str) and is_unicode(system)):
        raise Unusable("system is not text")
    return system


def with_system(prompt: Prompt, system: str | None) -> Prompt:
    """The prompt with the system's turn first, where there is one; text becomes a user's turn behind it.

    Raises Unusable where the prompt opens with another system's turn.
    """
    if system is None:
        return prompt
    messages = user_turn(prompt) if isinstance(prompt, str) else prompt
    if messages[0] == {"role": "system", "content": system}:
        return messages
    if messages[0]["role"] == "system":
        raise Unusable("the system column and the system turn of the messages differ")
    return [{"role": "system", "content": system}, *messages]


def _messages_in_text(text: str, what: str) -> Any:
    """The messages that are written in `text` as JSON; None for any other text.

    Raises Unusable for text that looks like messages and is not JSON, such as what Python prints of them.
    """
    start = text.lstrip()[:200]
    if not start.startswith(("[{", "{")) or not any(f"{q}{name}{q}" in start for q in "'\"" for name in _NAMES):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if start.startswith("[{"):
            raise Unusable(f"{what} holds messages as text that is not JSON") from None
        return None
    found = value if isinstance(value, list) else [value]
    return found if all(isinstance(one, dict) and _fields(one) for one in found) else None


_NAMES = ("role", "from")
_NOTHING: tuple[Any, ...] = (None, "", [], {})


def _fields(message: dict[str, Any]) -> tuple[str, str] | None:
    """What role and text are called."""
    return next((names for names in (("role", "content"), ("from", "value")) if set(names) <= message.keys()), None)


def _message(message: Any, what: str) -> Message:
    bad = f"a message of {what} has no role or no text"
    if not isinstance(message, dict) or not (names := _fields(message)):
        raise Unusable(bad)
    others = sorted({_name(key) for key, value in message.items() if key not in names and value not in _NOTHING})
    if others:
        raise Unusable(
            f"a message of {what} has {', '.join(others[:3])}, which would be lost: only role and text are read"
        )
    role, content = (message[name] for name in names)
    if isinstance(content, list):
        kinds = sorted({_kind(part) for part in content} - {"text"})
        if kinds:
            raise Unusable(f"a message of {what} holds content of type {', '.join(kinds[:3])}, and only text is read")
        content = "".join(part["text"] for part in content) if content else None
    if not (isinstance(role, str) and is_unicode(role) and isinstance(content, str) and is_unicode(content)):
        raise Unusable(bad)
    return {"role": SHAREGPT_ROLES.get(role, role) if names[0] == "from" else role, "content": content}


def _kind(part: Any) -> str:
    """The type of a part of a message's content: "text" where it is one, else its name."""
    if not isinstance(part, dict):
        return type(part).__name__
    if part.get("type") == "text" and isinstance(part.get("text"), str):
        others = [key for key, value in part.items() if key not in ("type", "text") and value is not None]
        return f"text with {_name(others[0])}" if others else "text"
    return _name(part.get("type"))


def _name(value: Any) -> str:
    """What a file calls something, for a message: short, and valid Unicode."""
    return value[:20].encode(errors="backslashreplace").decode() if isinstance(value, str) else type(value).__name__
