"""The YAML of config files: mappings, lists and scalars of the YAML 1.2 core schema, and nothing else.

YAML 1.1, which PyYAML reads, takes `no` for False, `010` for 8, `12:30` for 750 and turns dates into objects; it drops
the first of two equal keys, and its aliases and tags can expand without bound or run code. Settings need none of that.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from yaml import Event, MappingEndEvent, MappingStartEvent, ScalarEvent, SequenceEndEvent, SequenceStartEvent

MAX_DEPTH = 8  # a list in a section is at level 3

_NULL = re.compile(r"(null|Null|NULL|~|)")
_BOOL = re.compile(r"(true|True|TRUE|false|False|FALSE)")
_INT = re.compile(r"[-+]?[0-9]{1,100}")  # decimal only
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

Path = tuple[str, ...]


class NotSettings(ValueError):
    """The text is not settings: the message says why in a few words, with the line."""


def read(text: str, is_text: Callable[[Path], bool] = lambda path: False) -> Any:
    """The value of a YAML text. Where `is_text` is true of its path of keys, an unquoted scalar is text, except null.

    Raises NotSettings for invalid YAML, a repeated key, a tag, an alias, a second document and too deep nesting.
    """
    try:
        events = yaml.parse(text, Loader=yaml.SafeLoader)
        wanted = (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentStartEvent, yaml.DocumentEndEvent)
        inner = (event for event in events if not isinstance(event, wanted))
        first = next(inner, None)
        value = None if first is None else _value(first, inner, (), 0, is_text)
        if (more := next(inner, None)) is not None:
            raise NotSettings(f"a second document begins{_line(more)}")
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise NotSettings(f"it is not YAML: {error.problem}{where}") from error
    except yaml.YAMLError as error:
        raise NotSettings(f"it is not YAML: {' '.join(str(error).split())}") from error
    return value


def _value(event: Event, events: Iterator[Event], path: Path, depth: int, is_text: Callable[[Path], bool]) -> Any:
    if isinstance(event, yaml.AliasEvent):
        raise NotSettings(f"the alias *{event.anchor}{_line(event)} is not supported; write the value out")
    if event.tag is not None:  # type: ignore[attr-defined]
        raise NotSettings(f"the tag {event.tag}{_line(event)} is not supported; remove it")  # type: ignore[attr-defined]
    if depth > MAX_DEPTH:
        raise NotSettings(f"it nests deeper than {MAX_DEPTH} levels{_line(event)}")
    if isinstance(event, ScalarEvent):
        return event.value if event.style else _scalar(event.value, is_text(path))
    if isinstance(event, SequenceStartEvent):
        items = []
        while not isinstance(item := next(events), SequenceEndEvent):
            items.append(_value(item, events, path, depth + 1, is_text))
        return items
    assert isinstance(event, MappingStartEvent)
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    while not isinstance(key := next(events), MappingEndEvent):
        if not isinstance(key, ScalarEvent) or key.tag is not None:
            raise NotSettings(f"a key{_line(key)} is not text")
        name, where = key.value, (*path, key.value)
        if name in values:
            raise NotSettings(f"{'.'.join(where)!r} is set twice, in lines {lines[name]} and {_number(key)}")
        lines[name] = _number(key)
        values[name] = _value(next(events), events, where, depth + 1, is_text)
    return values


def _scalar(text: str, as_text: bool) -> Any:
    if _NULL.fullmatch(text):
        return None
    if as_text:
        return text
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    return float(re.sub(r"\.(?=[iInN])", "", text)) if _FLOAT.fullmatch(text) else text


def _line(event: Event) -> str:
    return f" in line {_number(event)}"


def _number(event: Event) -> int:
    assert event.start_mark is not None
    return event.start_mark.line + 1
