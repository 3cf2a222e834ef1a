"""Columns of the user's prompts that pass through: one Arrow type for all files, in which no value loses anything."""

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from rgtg.input_rows import is_unicode
from rgtg.parquet import UNREADABLE, open_parquet

# A column of one file: of Parquet with the type in the file, of JSON as a list of values without Arrow types.
Column: TypeAlias = pa.ChunkedArray | list[Any]

_SAME_VALUES = {
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
}


class CommonType:
    """The Arrow type of one column in all files, which are added one by one; string where they disagree.

    All JSON files count as one; nulls agree with every type.
    """

    def __init__(self) -> None:
        self.kinds: set[pa.DataType] = set()  # of Parquet
        self.of_values: pa.DataType = pa.null()  # of JSON

    def add(self, column: Column) -> None:
        if isinstance(column, list):
            self.of_values = _of_both(self.of_values, _type_of(column))
        else:
            self.kinds.add(_plain(column.type))

    @property
    def type(self) -> pa.DataType:
        kinds = {kind for kind in self.kinds | {self.of_values} if not pa.types.is_null(kind)}
        kind = kinds.pop() if len(kinds) == 1 else pa.string()
        return kind if _is_stored(kind) else pa.string()


def as_type(column: Column, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """A column cast to its common type; as text where the file has another type."""
    if isinstance(column, list):
        return pa.array([_text(value) for value in column] if pa.types.is_string(kind) else column, kind)
    if column.type == kind or _plain(column.type) == kind or pa.types.is_null(column.type):
        return column.cast(kind)
    if pa.types.is_temporal(column.type) or pa.types.is_decimal(column.type):
        return column.cast(kind)  # Arrow keeps all digits and the time zone; Python would not
    return pa.array([_text(value) for value in column.to_pylist()], kind)


def loadable(fields: Sequence[pa.Field]) -> list[pa.Field]:
    """The same fields, as text where `datasets` has no feature for a type, such as a map."""
    return [field if _has_feature(field) else field.with_type(pa.string()) for field in fields]


def _has_feature(field: pa.Field) -> bool:
    import datasets  # which takes a second

    try:
        datasets.Features.from_arrow_schema(pa.schema([field]))
    except ValueError:  # what it says of a type that it does not know
        return False
    return True


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of the same values in the usual layout: no dictionary, no large or view type."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return _SAME_VALUES.get(kind, kind)


def _type_of(values: list[Any]) -> pa.DataType:
    try:
        return pa.array(values).type
    except UNREADABLE:
        return pa.string()


def _of_both(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """The type of values of two types in one column, as Arrow would infer it of all of them at once."""
    schemas = [pa.schema([("values", kind)]) for kind in (first, second)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return pa.string()


def _is_stored(kind: pa.DataType) -> bool:
    """Whether Parquet can store this type: it cannot store empty structs, or lists nested a hundred deep."""
    trial = pa.BufferOutputStream()
    try:
        pq.write_table(pa.table([pa.array([], kind)], ["values"]), trial)
        return open_parquet(pa.BufferReader(trial.getvalue())).schema_arrow.field(0).type == kind
    except UNREADABLE:
        return False


def _text(value: Any) -> str | None:
    """A value as text: itself, decoded bytes (else hex), or JSON."""
    if value is None or (isinstance(value, str) and is_unicode(value)):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    return json.dumps(value, default=str)
