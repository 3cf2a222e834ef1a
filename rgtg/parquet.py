"""Untrusted Parquet files, read as plain Arrow types: no extension type in them is ever instantiated.

A file's Arrow schema may name extension types, and a name that this process has registered runs code: Ray's type for
Python objects unpickles its values. So the names are removed from the footer before Arrow reads it, at any depth of
nesting, and every column has its storage type.
"""

import base64
import binascii
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from rgtg.errors import first_line

# Errors of reading a file; the last two are for bytes that are not text, and dates that Python does not have.
UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError)

MAGIC, ENCRYPTED = b"PAR1", b"PARE"
TAIL = 64 * 1024  # bytes at the end of a file that are read first; most footers are shorter

SCHEMA = b"ARROW:schema"  # the key of a file's Arrow schema, an IPC message in base64
EXTENSION = b"ARROW:extension:"  # prefix of an extension type's keys in it
UNKNOWN_SCHEMA, UNKNOWN_EXTENSION = b"-----:schema", b"-----:extension:"  # of the same lengths, and unknown to Arrow


def open_parquet(source: pa.NativeFile) -> pq.ParquetFile:
    """Open a Parquet file; columns of extension types have their storage types.

    Raises one of UNREADABLE for a file that is encrypted or not Parquet.
    """
    footer = plain_footer(read_footer(source))
    # A file of nothing but this footer, from which Arrow parses the metadata.
    alone = MAGIC + footer + len(footer).to_bytes(4, "little") + MAGIC
    metadata = pq.ParquetFile(pa.BufferReader(alone)).metadata
    source.seek(0)
    return pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True, arrow_extensions_enabled=False)


def read_footer(source: pa.NativeFile) -> bytes:
    """The raw footer (Thrift) of a Parquet file. Raises ValueError where there is none."""
    size = source.size()
    source.seek(max(0, size - TAIL))
    tail = source.read(TAIL)
    if tail[-4:] == ENCRYPTED:
        raise ValueError("it is encrypted")
    if size < 12 or tail[-4:] != MAGIC:
        raise ValueError("it does not end like a Parquet file")
    length = int.from_bytes(tail[-8:-4], "little")
    if length > size - 12:
        raise ValueError("its footer is longer than the file")
    if length + 8 > len(tail):
        source.seek(size - 8 - length)
        tail = source.read(length + 8)
    return tail[len(tail) - 8 - length : -8]


def plain_footer(footer: bytes) -> bytes:
    """The footer without names of extension types, at the same length.

    Arrow finds its schema by a key in the footer. Wherever that key occurs, the names are removed from the schema
    behind it; where the bytes behind it are no schema that Arrow would write, the key itself is made unknown.
    """
    plain = bytearray(footer)
    for start in _offsets(footer, SCHEMA):
        end = start + len(SCHEMA)
        value = _string(footer, end)
        if value and (schema := _plain_schema(footer[value])):
            plain[value] = schema
        else:
            plain[start:end] = UNKNOWN_SCHEMA
    return bytes(plain)


def _offsets(data: bytes, part: bytes) -> Iterator[int]:
    start = data.find(part)
    while start >= 0:
        yield start
        start = data.find(part, start + 1)


def _string(footer: bytes, start: int) -> slice | None:
    """The slice of the string field that begins at `start`, in Thrift's compact protocol.

    None where it is not the last field of its struct: of two fields with the same id the last one counts.
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
    """An Arrow schema in base64 without names of extension types; None where it is not canonical base64."""
    try:
        message = base64.b64decode(value, validate=True)
    except binascii.Error:
        return None
    if base64.b64encode(message) != value:
        return None
    return base64.b64encode(message.replace(EXTENSION, UNKNOWN_EXTENSION))


def parquet_fault(source: pa.NativeFile, columns: list[str] | None = None) -> str | None:
    """Why some rows of a Parquet file cannot be read (in `columns`); None where all can.

    Everything is decoded once: behind a valid footer a file may be corrupt, and lose rows silently.
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
