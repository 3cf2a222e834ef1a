"""Rows of input files as they are: which files hold rows, what is wrong with one, and the objects in one of JSON."""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads

from rgtg.errors import first_line

SUFFIXES = (".parquet", ".jsonl", ".json")

Row = dict[str, Any]

# What Arrow raises where it cannot read: of the last two are bytes that are no text, and dates that Python has not.
UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError)


def parquet_fault(source: Any, filesystem: Any = None, columns: list[str] | None = None) -> str | None:
    """Why the rows of a Parquet file cannot be read, None where all can (of those columns).

    They are decoded once for that: a file may be broken far behind a schema that is whole, and lose rows silently.
    """
    try:
        options = pads.ParquetFragmentScanOptions(page_checksum_verification=True)
        file = pads.ParquetFileFormat(default_fragment_scan_options=options).make_fragment(source, filesystem)
        metadata, names = file.metadata, file.physical_schema.names
        groups = sum(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        if len(set(names)) < len(names):
            return "two of its columns have the same name"
        found = sum(batch.num_rows for batch in file.to_batches(columns=columns, batch_readahead=1, use_threads=False))
    except UNREADABLE as error:
        return f"not a readable Parquet file ({first_line(error)})"
    if not found == groups == metadata.num_rows:
        return f"not a whole Parquet file ({found} rows of {max(groups, metadata.num_rows)})"
    return None


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
