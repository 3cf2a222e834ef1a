"""Rows of Parquet and of JSON as Python objects, or what is wrong with one."""

import json
from typing import Any

import pyarrow as pa

from rgtg.errors import first_line
from rgtg.parquet import UNREADABLE

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


def json_lines(data: bytes) -> list[tuple[int, bytes]]:
    """The rows of a JSON file by number, each as a line that `json_row` reads: one object a line, or all in one array.

    Never raises. Lines end at a newline and nowhere else: texts may hold the other separators that Unicode knows.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    if data.lstrip().startswith(b"["):
        try:
            return list(enumerate((json.dumps(value).encode() for value in json.loads(data)), 1))
        except (ValueError, RecursionError):  # then it may be lines, of which the first is bad
            pass
    return [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]


def json_row(line: bytes) -> Row | str:
    """The object of a line, or what is wrong with it."""
    try:
        value = json.loads(line)
    except UnicodeDecodeError:
        return "not UTF-8 text"
    except (ValueError, RecursionError):
        return "not a JSON object"
    return value if isinstance(value, dict) else "not a JSON object"
