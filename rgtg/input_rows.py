"""Rows of Parquet, CSV and JSON as Python objects; in place of an unreadable row, the reason."""

import csv
import json
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from rgtg.errors import first_line
from rgtg.parquet import UNREADABLE

Row = dict[str, Any]

MOST_HEADER = 1 << 16  # bytes of a CSV file in which its header ends


def table_rows(table: pa.Table) -> list[Row | str]:
    """The rows of a table; in place of a row with a value that Python cannot represent, the reason."""
    try:
        return table.to_pylist()
    except UNREADABLE as error:
        if table.num_rows < 2:
            return [f"not readable ({first_line(error)})"] * table.num_rows
    middle = table.num_rows // 2
    return table_rows(table[:middle]) + table_rows(table[middle:])


def is_unicode(text: str) -> bool:
    """Whether text can be tokenized and stored: lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def csv_table(data: bytes, delimiter: str) -> pa.Table:
    """The rows of a CSV file with a header, all columns as text. Raises ValueError for what is none."""
    text = data.removeprefix(b"\xef\xbb\xbf")
    first = text[:MOST_HEADER].decode(errors="replace").splitlines(keepends=True)
    try:
        names = next(csv.reader(first, delimiter=delimiter), [])
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if len(set(names)) < len(names):
        raise ValueError("two columns have the same name")
    return pa_csv.read_csv(
        pa.BufferReader(text),
        parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    )


def json_lines(data: bytes) -> list[tuple[int, bytes]]:
    """The numbered rows of a JSON file, one object per line or all in one array, as lines for `json_row`.

    Never raises. Only a newline ends a line, since texts may hold the other line separators of Unicode.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    if data.lstrip().startswith(b"["):
        try:
            return list(enumerate((json.dumps(value).encode() for value in json.loads(data)), 1))
        except (ValueError, RecursionError):  # lines, the first of which is broken
            pass
    return [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]


def json_row(line: bytes) -> Row | str:
    """The object of a line, or the reason why it is none."""
    try:
        value = json.loads(line)
    except UnicodeDecodeError:
        return "not UTF-8 text"
    except (ValueError, RecursionError):
        return "not a JSON object"
    return value if isinstance(value, dict) else "not a JSON object"
