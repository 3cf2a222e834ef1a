"""Parquet files of others, read as plain Arrow types: no extension type of theirs is ever made.

A file's Arrow schema names extension types, and each name that this process has registered runs code: Ray's type for
Python objects unpickles its values. So the names are taken out of the footer before Arrow reads it, at any depth of
nesting, and every column is what it is stored as.
"""

import base64
import binascii
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from rgtg.errors import first_line

# What Arrow raises where it cannot read: of the last two are bytes that are no text, and dates that Python has not.
UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError)

MAGIC, ENCRYPTED = b"PAR1", b"PARE"
TAIL = 64 * 1024  # bytes of a file's end that are read first; most footers are shorter

SCHEMA = b"ARROW:schema"  # the key of a file's Arrow schema, an IPC message in base64
EXTENSION = b"ARROW:extension:"  # how the keys of an extension type begin in it
UNKNOWN_SCHEMA, UNKNOWN_EXTENSION = b"-----:schema", b"-----:extension:"  # as long, and nothing to Arrow


def open_parquet(source: pa.NativeFile) -> pq.ParquetFile:
    """A Parquet file whose columns have plain types: extension types are what they are stored as.

    Raises one of UNREADABLE for a file that is none, or is encrypted.
    """
    footer = plain_footer(read_footer(source))
    # A file that has nothing but the footer is enough to parse it.
    alone = MAGIC + footer + len(footer).to_bytes(4, "little") + MAGIC
    metadata = pq.ParquetFile(pa.BufferReader(alone)).metadata
    source.seek(0)
    return pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True, arrow_extensions_enabled=False)


def read_footer(source: pa.NativeFile) -> bytes:
    """The footer of a Parquet file, Thrift as it was written. Raises ValueError where there is none."""
    size = source.size()
    source.seek(max(0, size - TAIL))
    tail = source.read(TAIL)
    if tail[-4:] == ENCRYPTED:
        raise ValueError("it is encrypted")
    if size < 12 or tail[-4:] != MAGIC:
        raise ValueError("it does not end as one")
    length = int.from_bytes(tail[-8:-4], "little")
    if length > size - 12:
        raise ValueError("its footer is longer than the file")
    if length + 8 > len(tail):
        source.seek(size - 8 - length)
        tail = source.read(length + 8)
    return tail[len(tail) - 8 - length : -8]


def plain_footer(footer: bytes) -> bytes:
    """A footer of the same length without a name of an extension type.

    Arrow finds its schema by a key, which must stand in the footer as it is. Wherever it stands, the value behind it
    is made plain; where that is no value that Arrow would write, the key becomes one that Arrow does not know.
    """
    plain = bytearray(footer)
    for start in _places(footer, SCHEMA):
        end = start + len(SCHEMA)
        value = _string(footer, end)
        if value and (schema := _plain_schema(footer[value])):
            plain[value] = schema
        else:
            plain[start:end] = UNKNOWN_SCHEMA
    return bytes(plain)


def _places(data: bytes, part: bytes) -> Iterator[int]:
    start = data.find(part)
    while start >= 0:
        yield start
        start = data.find(part, start + 1)


def _string(footer: bytes, start: int) -> slice | None:
    """Where the string that follows at `start` is, in Thrift's compact protocol: the next field, and its length.

    None where it does not end its struct: of two fields with one id the last one counts.
    """
    if footer[start : start + 1] != b"\x18":
        return None
    length = shift = 0
    for i in range(start + 1, min(start + 6, len(footer))):
        length |= (footer[i] & 0x7F) << shift
        shift += 7
        if footer[i] < 0x80:
            stop = i + 1 + length
            return slice(i + 1, stop) if footer[stop : stop + 1] == b"\0" else None
    return None


def _plain_schema(value: bytes) -> bytes | None:
    """An Arrow schema in base64 without names of extension types; None where that is no base64 in its normal form."""
    try:
        message = base64.b64decode(value, validate=True)
    except binascii.Error:
        return None
    if base64.b64encode(message) != value:
        return None
    return base64.b64encode(message.replace(EXTENSION, UNKNOWN_EXTENSION))


def parquet_fault(source: pa.NativeFile, columns: list[str] | None = None) -> str | None:
    """Why the rows of a Parquet file cannot be read, None where all can (of those columns).

    They are decoded once for that: a file may be broken far behind a schema that is whole, and lose rows silently.
    """
    try:
        file = open_parquet(source)
        metadata, names = file.metadata, file.schema_arrow.names
        groups = sum(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        if len(set(names)) < len(names):
            return "two of its columns have the same name"
        found = sum(batch.num_rows for batch in file.iter_batches(columns=columns, use_threads=False))
    except UNREADABLE as error:
        return f"not a readable Parquet file ({first_line(error)})"
    if not found == groups == metadata.num_rows:
        return f"not a whole Parquet file ({found} rows of {max(groups, metadata.num_rows)})"
    return None
