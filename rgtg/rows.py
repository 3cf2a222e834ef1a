"""Rows of input files as they are: which files hold rows, what is wrong with one, and the objects in one of JSON."""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from rgtg.errors import first_line
from rgtg.parquet import UNREADABLE

SUFFIXES = (".parquet", ".jsonl", ".json")

Row = dict[str, Any]


def table_rows(table: pa.Table) -> list[Row | str]:
    """The rows of a table; what is wrong with one instead, where it holds a value that Python cannot."""
    try:
        return table.to_pylist()
    except UNREADABLE as error:
        if table.num_rows < 2:
            return [f"not readable ({first_line(error)})"] * table.num_rows
    middle = table.num_rows // 2
    return table_rows(table[:middle]) + table_rows(table[middle:])


def is_unicode(text: str) -> bool:
    """Whether text can be tokenised and stored: a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
