"""Input files of a user, prompts or pairs: each real file once, its raw rows, and the reasons for skipped files.

Rows of Parquet and of CSV keep their columns, those of CSV as text. Rows of JSON keep their lines, whose objects may
differ in their keys. JSON and CSV may be packed by gzip or Zstandard.
"""

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from rgtg import s3_filesystem, storage, storage_errors
from rgtg.errors import UserError, first_line, printable
from rgtg.input_rows import Row, csv_table, json_lines, json_row, table_rows
from rgtg.parquet import UNREADABLE, open_parquet, parquet_fault

JSON, CSV = (".jsonl", ".json", ".ndjson"), {".csv": ",", ".tsv": "\t"}
PACKED = {".gz": "gzip", ".zst": "zstd"}
SUFFIXES = (".parquet", *(text + packing for text in (*JSON, *CSV) for packing in ("", *PACKED)))
ENDINGS = f".parquet, {', '.join((*JSON, *CSV))} or, of text, these and {' or '.join(PACKED)}"  # in messages

NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"  # Hive's null

# Text unpacks to some 3 to 30 times its size; a file of a single letter to 1,000 times and more.
MOST_UNPACKED, ALWAYS_UNPACKED = 200, 1 << 26
UNPACKED_AT_ONCE = 1 << 22

MOST_SHOWN = 200

_LINES = pa.schema([("number", pa.int64()), ("line", pa.large_binary())])  # of JSON


class InputFile(NamedTuple):
    uri: str  # of the settings; the file is at or below it
    path: str  # in the file system of `uri`
    size: int  # bytes

    @property
    def is_parquet(self) -> bool:
        return self.path.endswith(".parquet")

    @property
    def packing(self) -> str | None:
        """The codec of a packed file."""
        return next((codec for suffix, codec in PACKED.items() if self.path.endswith(suffix)), None)

    @property
    def partitions(self) -> dict[str, str | None]:
        """Columns that the folders below `uri` give, as Hive names them: `lang=en/date=2026-11-26/part.parquet`."""
        root = storage.resolve(self.uri)[1]
        folders = self.path.removeprefix(root).split("/")[:-1]
        named = [folder.split("=", 1) for folder in folders if "=" in folder.strip("=")]
        return {unquote(name): None if value == NO_PARTITION else unquote(value) for name, value in named}

    @property
    def delimiter(self) -> str | None:
        """Of the columns of CSV; None for other files."""
        packing = next((suffix for suffix in PACKED if self.path.endswith(suffix)), "")
        return CSV.get(os.path.splitext(self.path.removesuffix(packing))[1])


@dataclass(frozen=True)
class Found:
    files: list[InputFile] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)  # reasons by path
    ignored: dict[str, str] = field(default_factory=dict)  # of another type by their names, or duplicates

    @property
    def skipped(self) -> dict[str, str]:
        return self.unreadable | self.ignored

    def without(self, unreadable: Mapping[str, str]) -> "Found":
        """The same, with these files moved to the unreadable ones; the reasons are by path."""
        files = [file for file in self.files if file.path not in unreadable]
        return replace(self, files=files, unreadable={**self.unreadable, **unreadable})


def find(uris: list[str]) -> Found:
    """The input files at or below `uris`, in that order and by path.

    Raises UserError where one does not exist, or is named itself and is of another type. A name without an ending is
    taken for JSON lines.
    """
    found = Found()
    real: dict[tuple[str, str], str] = {}  # paths by file system and real path
    for uri in uris:
        filesystem, _ = storage.resolve(uri)
        local = isinstance(filesystem, pafs.LocalFileSystem)
        for file, fault in storage.scan(uri, SUFFIXES):
            if fault and file.type == pafs.FileType.File:  # a directory or link may hide input files
                found.ignored[file.path] = f"its name does not end with {ENDINGS}"
                continue
            if fault:
                found.unreadable[file.path] = fault
                continue
            if os.path.splitext(file.path)[1] and not file.path.endswith(SUFFIXES):
                raise UserError(
                    f"{file.path!r} cannot be read: its name does not end with {ENDINGS}; convert it, such as by "
                    "pandas.read_excel(FILE).to_parquet('data.parquet')"
                )
            key = filesystem.type_name, os.path.realpath(file.path) if local else file.path
            if key not in real:
                real[key] = file.path
                found.files.append(InputFile(uri, file.path, file.size))
            elif real[key] != file.path:
                found.ignored[file.path] = f"the same file as {real[key]!r}"
    return found


class Unreadable(Exception):
    """Raised for a file that is skipped; its text is the reason."""


@dataclass(frozen=True)
class RawRows:
    """Unchecked rows of a file: `table` holds its columns, or the lines of JSON with their numbers."""

    table: pa.Table
    is_json: bool
    before: int = 0  # rows of the file that stand before those of the table

    @property
    def unit(self) -> str:
        """The word for a row in messages."""
        return "line" if self.is_json else "row"

    @property
    def numbers(self) -> Sequence[int]:
        """Numbers in the file, from 1: of lines for JSON, else of rows."""
        if self.is_json:
            return self.table["number"].to_pylist()
        return range(self.before + 1, self.before + self.table.num_rows + 1)

    def shown(self, i: int) -> str:
        """Row `i` as a person may read it, no longer than MOST_SHOWN characters."""
        if self.is_json:
            text = self.table["line"][i].as_py().decode(errors="replace")
        else:
            [row] = table_rows(self.table.slice(i, 1))
            text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False, default=str)
        return printable(text[:MOST_SHOWN])

    def rows(self, columns: Collection[str] | None = None) -> list[Row | str]:
        """The rows as Python objects; in place of an unreadable row, the reason.

        Of Parquet only `columns` are converted, since others may hold values that Python cannot represent, such as a
        date of the year 2.7 million. All are converted if some column holds invalid values, which marks those rows.
        """
        if self.is_json:
            return [json_row(line) for line in self.table["line"].to_pylist()]
        if columns is None or not _is_valid(self.table):
            return table_rows(self.table)
        return table_rows(self.table.select([name for name in self.table.column_names if name in columns]))


def read_rows(file: InputFile) -> RawRows:
    """All rows of a file. Raises Unreadable for a broken or empty file, which is to be skipped.

    Raises UserError or TransientError for a store that does not deliver the file, which must not be skipped.
    """
    data = _read_bytes(file)
    if not file.is_parquet:
        return _rows_of_text(file, data)
    if fault := parquet_fault(pa.BufferReader(data)):
        raise Unreadable(fault)
    return RawRows(open_parquet(pa.BufferReader(data)).read(), is_json=False)


def first_rows(file: InputFile, num_rows: int) -> RawRows:
    """The first rows of a file. Raises what `read_rows` raises."""
    if not file.is_parquet:
        whole = read_rows(file)
        return replace(whole, table=whole.table.slice(0, num_rows))
    try:
        with _open(file) as source:
            parquet = s3_filesystem.retry_read(lambda: open_parquet(source))
            batches = list(islice(parquet.iter_batches(num_rows), 1))
            return RawRows(pa.Table.from_batches(batches, parquet.schema_arrow), is_json=False)
    except UNREADABLE as error:
        fault = f"not a readable Parquet file ({first_line(error)})"
        raise storage_errors.failure_of_store(f"cannot read {file.path!r}", fault) or Unreadable(fault) from error


def read_batches(file: InputFile, columns: Collection[str], num_rows: int) -> Iterator[RawRows]:
    """The rows of a file that passed `check_rows`, `num_rows` at a time; of Parquet only `columns`.

    Raises Unreadable where a JSON file has become broken or empty.
    """
    if not file.is_parquet:
        whole = _rows_of_text(file, _read_bytes(file))
        for start in range(0, whole.table.num_rows, num_rows):
            yield replace(whole, table=whole.table.slice(start, num_rows), before=start)
        return
    with _open(file) as source:
        parquet = open_parquet(source)
        names = [name for name in parquet.schema_arrow.names if name in columns]
        before = 0
        for batch in parquet.iter_batches(num_rows, columns=names):
            yield RawRows(pa.Table.from_batches([batch]), is_json=False, before=before)
            before += batch.num_rows


def check_rows(file: InputFile, columns: Collection[str]) -> list[str] | None:
    """Decode `columns` of a Parquet or CSV file once and return the names of all columns; None for JSON.

    Lines of JSON are checked one by one when they are read. Raises what `read_rows` raises.
    """
    if file.delimiter:
        return read_rows(file).table.column_names
    if not file.is_parquet:
        _read_bytes(file, at_most=None if file.packing else 1)
        return None
    try:
        with _open(file) as source:
            names: list[str] = s3_filesystem.retry_read(lambda: open_parquet(source).schema_arrow.names)
            fault = parquet_fault(source, [name for name in names if name in columns])
    except UNREADABLE as error:
        fault = f"not a readable Parquet file ({first_line(error)})"
    if fault:
        raise storage_errors.failure_of_store(f"cannot read {file.path!r}", fault) or Unreadable(fault)
    return names


def _open(file: InputFile) -> pa.NativeFile:
    return storage.resolve(file.uri)[0].open_input_file(file.path)


def _read_bytes(file: InputFile, at_most: int | None = None) -> bytes:
    """The content of a file, or its first bytes. Raises what `read_rows` raises."""

    def read() -> bytes:
        with _open(file) as stream:
            return stream.read(at_most)

    try:
        data = s3_filesystem.retry_read(read)
    except OSError as error:
        if failure := storage_errors.failure_of_store(f"cannot read {file.path!r}", str(error)):
            raise failure from None
        raise Unreadable(first_line(error)) from error
    if file.packing:
        data = _unpacked(data, file.packing)
    if not data:
        raise Unreadable("the file is empty")
    return data


def _unpacked(data: bytes, codec: str) -> bytes:
    room = max(MOST_UNPACKED * len(data), ALWAYS_UNPACKED)
    parts = []
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), codec) as stream:
            while room >= 0 and (part := stream.read(UNPACKED_AT_ONCE)):
                parts.append(part)
                room -= len(part)
    except (OSError, pa.ArrowException) as error:
        raise Unreadable(f"cannot be unpacked ({first_line(error)})") from error
    if room < 0:
        raise Unreadable(f"it unpacks to more than {MOST_UNPACKED} times its size")
    return b"".join(parts)


def _rows_of_text(file: InputFile, data: bytes) -> RawRows:
    if file.delimiter is None:
        return RawRows(_lines(data), is_json=True)
    try:
        return RawRows(csv_table(data, file.delimiter), is_json=False)
    except ValueError as error:
        raise Unreadable(f"not a readable CSV file ({first_line(error)})") from error


def _lines(data: bytes) -> pa.Table:
    lines = json_lines(data)
    return pa.table([[number for number, _ in lines], [line for _, line in lines]], schema=_LINES)


def _is_valid(table: pa.Table) -> bool:
    """Whether all values of all columns are valid for their types."""
    try:
        table.validate(full=True)
    except UNREADABLE:
        return False
    return True


def check_share(num_read: int, found: Found, most: float, setting: str) -> None:
    """Raises UserError where no file can be read, or where more than the fraction `most` cannot."""
    if not num_read:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in found.skipped.items())
        raise UserError(f"none of the files of {setting} can be read ({reasons})")
    total = num_read + len(found.unreadable)
    if len(found.unreadable) > most * total:
        path, reason = next(iter(found.unreadable.items()))
        raise UserError(
            f"{len(found.unreadable)} of the {total} files of {setting} cannot be read, such as {path!r} ({reason}); "
            f"fix or remove them, or raise generate.max_error_rate, which is {most}"
        )


def lines(skipped: Mapping[str, str]) -> str:
    """Skipped files and the reasons as indented lines, to follow a message."""
    return "".join(f"\n  skipped {printable(f'{path}: {reason}')}" for path, reason in skipped.items())
