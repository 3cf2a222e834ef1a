"""Columns of prompts that are not ours and pass through: one type for all files, in which no value loses anything."""

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from rgtg.parquet import UNREADABLE, open_parquet
from rgtg.rows import is_unicode

# A column of one file: Arrow's, with the type that the file gives it, or the values of JSON, which has no such types.
Column: TypeAlias = pa.ChunkedArray | list[Any]

_SAME_VALUES = {
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
}


def common_type(columns: Sequence[Column]) -> pa.DataType:
    """The Arrow type of one column in all files where they agree, and text where they do not.

    The files of JSON count as one; nulls agree with everything.
    """
    values = [value for column in columns if isinstance(column, list) for value in column]
    kinds = {_plain(column.type) for column in columns if isinstance(column, pa.ChunkedArray)}
    kinds = {kind for kind in kinds | {_type_of(values)} if not pa.types.is_null(kind)}
    kind = kinds.pop() if len(kinds) == 1 else pa.string()
    return kind if _is_stored(kind) else pa.string()


def as_type(column: Column, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """A column in its common type: text where its own values are of another."""
    if isinstance(column, list):
        return pa.array([_text(value) for value in column] if pa.types.is_string(kind) else column, kind)
    if column.type == kind or _plain(column.type) == kind or pa.types.is_null(column.type):
        return column.cast(kind)
    if pa.types.is_temporal(column.type) or pa.types.is_decimal(column.type):
        return column.cast(kind)  # to the last digit, and with the zone; Python has fewer digits
    return pa.array([_text(value) for value in column.to_pylist()], kind)


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of the same values without the choice of how they are laid out."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return _SAME_VALUES.get(kind, kind)


def _type_of(values: list[Any]) -> pa.DataType:
    try:
        return pa.array(values).type
    except UNREADABLE:
        return pa.string()


def _is_stored(kind: pa.DataType) -> bool:
    """Whether Parquet has this type; it has none for structs without members, or lists nested a hundredfold."""
    trial = pa.BufferOutputStream()
    try:
        pq.write_table(pa.table([pa.array([], kind)], ["values"]), trial)
        return open_parquet(pa.BufferReader(trial.getvalue())).schema_arrow.field(0).type == kind
    except UNREADABLE:
        return False


def _text(value: Any) -> str | None:
    """A value as text; JSON where it is no text that can be stored."""
    if value is None or (isinstance(value, str) and is_unicode(value)):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    return json.dumps(value, default=str)
