"""The files that a user gives, prompts or pairs: each one once, its rows as they stand in it, and what cannot be read.

Parquet keeps its columns. JSON keeps its lines, whose objects may differ in their keys. Both are read here alone.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from rgtg import s3_filesystem, storage, storage_errors
from rgtg.errors import UserError, first_line, printable
from rgtg.parquet import UNREADABLE, open_parquet, parquet_fault
from rgtg.rows import Row, json_lines, json_row, table_rows

SUFFIXES = (".parquet", ".jsonl", ".json")

_LINES = pa.schema([("number", pa.int64()), ("line", pa.large_binary())])  # of JSON


class InputFile(NamedTuple):
    place: str  # of the settings, at or below which it is
    path: str
    size: int  # bytes

    @property
    def is_parquet(self) -> bool:
        return self.path.endswith(".parquet")


@dataclass(frozen=True)
class Found:
    files: list[InputFile] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)  # reasons by path
    ignored: dict[str, str] = field(default_factory=dict)  # no input by their names, or the same file again

    @property
    def skipped(self) -> dict[str, str]:
        return self.unreadable | self.ignored

    def without(self, unreadable: Mapping[str, str]) -> "Found":
        """The same where more files cannot be read, for these reasons by path."""
        files = [file for file in self.files if file.path not in unreadable]
        return replace(self, files=files, unreadable={**self.unreadable, **unreadable})


def find(places: list[str]) -> Found:
    """The input files at or below `places`, by place and path. Raises UserError where there is no such place."""
    found = Found()
    real: dict[tuple[str, str], str] = {}  # paths by what they are in reality
    for place in places:
        filesystem, _ = storage.resolve(place)
        local = isinstance(filesystem, pafs.LocalFileSystem)
        for file, fault in storage.scan(place, SUFFIXES):
            if fault:
                is_another = file.type == pafs.FileType.File  # by its name; what is no file may hide some
                (found.ignored if is_another else found.unreadable)[file.path] = fault
                continue
            key = filesystem.type_name, os.path.realpath(file.path) if local else file.path
            if key not in real:
                real[key] = file.path
                found.files.append(InputFile(place, file.path, file.size))
            elif real[key] != file.path:
                found.ignored[file.path] = f"the same file as {real[key]!r}"
    return found


class Unreadable(Exception):
    """Why a file is skipped."""


@dataclass(frozen=True)
class RawRows:
    """Rows as they stand in a file: `table` has the columns of Parquet, or the lines of JSON with their numbers."""

    table: pa.Table
    is_json: bool

    @property
    def unit(self) -> str:
        """What a row is called where something is wrong with it."""
        return "line" if self.is_json else "row"

    @property
    def numbers(self) -> Sequence[int]:
        """Of JSON the numbers of the lines in their file, of Parquet those of the rows in `table`; both from 1."""
        return self.table["number"].to_pylist() if self.is_json else range(1, self.table.num_rows + 1)

    def rows(self, columns: Collection[str] | None = None) -> list[Row | str]:
        """The rows as Python objects, or what is wrong with one.

        `columns` are those of Parquet that are needed. What stands beside them may be beyond Python, such as a date of
        the year 2.7 million, and is looked at only where a column holds values that are not of its type.
        """
        if self.is_json:
            return [json_row(line) for line in self.table["line"].to_pylist()]
        if columns is None or not _is_valid(self.table):
            return table_rows(self.table)
        return table_rows(self.table.select([name for name in self.table.column_names if name in columns]))


def read_rows(file: InputFile) -> RawRows:
    """All rows of a file. Raises Unreadable for one that is broken or empty.

    A store that does not give the file is no reason to go on without it: that is UserError or TransientError.
    """
    data = _read_bytes(file)
    if not file.is_parquet:
        return RawRows(_lines(data), is_json=True)
    if fault := parquet_fault(pa.BufferReader(data)):
        raise Unreadable(fault)
    return RawRows(open_parquet(pa.BufferReader(data)).read(), is_json=False)


def read_batches(file: InputFile, columns: Collection[str], num_rows: int) -> Iterator[RawRows]:
    """The rows of a file that `check_rows` has passed, `num_rows` at a time, of Parquet with these columns alone.

    Raises Unreadable where a file of JSON is broken or empty now.
    """
    if not file.is_parquet:
        lines = _lines(_read_bytes(file))
        for start in range(0, lines.num_rows, num_rows):
            yield RawRows(lines.slice(start, num_rows), is_json=True)
        return
    with _open(file) as source:
        parquet = open_parquet(source)
        names = [name for name in parquet.schema_arrow.names if name in columns]
        for batch in parquet.iter_batches(num_rows, columns=names):
            yield RawRows(pa.Table.from_batches([batch]), is_json=False)


def check_rows(file: InputFile, columns: Collection[str]) -> list[str] | None:
    """Decode these columns of Parquet once, and keep nothing: the names of all its columns. None for JSON, of which
    what is wrong with a line is said where it is read.

    Raises as `read_rows`.
    """
    if not file.is_parquet:
        _read_bytes(file, at_most=1)
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
    return storage.resolve(file.place)[0].open_input_file(file.path)


def _read_bytes(file: InputFile, at_most: int | None = None) -> bytes:
    """Everything in a file, or the first bytes. Raises as `read_rows`."""

    def read() -> bytes:
        with _open(file) as stream:
            return stream.read(at_most)

    try:
        data = s3_filesystem.retry_read(read)
    except OSError as error:
        if failure := storage_errors.failure_of_store(f"cannot read {file.path!r}", str(error)):
            raise failure from None
        raise Unreadable(first_line(error)) from error
    if not data:
        raise Unreadable("the file is empty")
    return data


def _lines(data: bytes) -> pa.Table:
    lines = json_lines(data)
    return pa.table([[number for number, _ in lines], [line for _, line in lines]], schema=_LINES)


def _is_valid(table: pa.Table) -> bool:
    """Whether every column holds values of its type alone."""
    try:
        table.validate(full=True)
    except UNREADABLE:
        return False
    return True


def check_share(num_read: int, found: Found, most: float, setting: str) -> None:
    """Raises UserError where no file can be read, or more than a part `most` of them cannot."""
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
    """Files that were skipped and why, each as a line below another one."""
    return "".join(f"\n  skipped {printable(f'{path}: {reason}')}" for path, reason in skipped.items())
