"""Rows of input files as they are: which files hold rows, and the objects in a file of JSON."""

import json
from collections.abc import Iterator
from typing import Any

SUFFIXES = (".parquet", ".jsonl", ".json")

Row = dict[str, Any]


def json_rows(data: bytes) -> Iterator[tuple[int, Row | str]]:
    """The rows of a JSON file by number, one object a line or all in one array; what a bad one is instead.

    Never raises. Lines end at a newline and nowhere else: texts may hold the other separators that Unicode knows.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    if data.lstrip().startswith(b"["):
        try:
            values = json.loads(data)
        except (ValueError, RecursionError):  # then it may be lines, of which the first is bad
            pass
        else:
            yield from enumerate((v if isinstance(v, dict) else "not a JSON object" for v in values), 1)
            return
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            yield number, _object(line)


def _object(line: bytes) -> Row | str:
    try:
        value = json.loads(line)
    except UnicodeDecodeError:
        return "not UTF-8 text"
    except (ValueError, RecursionError):
        return "not a JSON object"
    return value if isinstance(value, dict) else "not a JSON object"
