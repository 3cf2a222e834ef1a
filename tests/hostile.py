"""Input that tries to run code, and a way to see whether it did."""

import base64
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rgtg.parquet import read_footer

OBJECTS = "ray.data.arrow_pickled_object"


class Trap:
    """Something that, where it is unpickled, leaves a file behind."""

    def __init__(self, directory: Path) -> None:
        self.path = Path(directory, "sprung")

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")

    @property
    def sprung(self) -> bool:
        return self.path.exists()


def field_of(name: str, kind: pa.DataType, extension: str) -> pa.Field:
    """A field of an extension type: its name in the metadata is enough, also where no such type is known."""
    return pa.field(name, kind, metadata={"ARROW:extension:name": extension, "ARROW:extension:metadata": ""})


def objects(trap: Trap, rows: int = 1) -> dict[str, tuple[pa.Field, pa.Array]]:
    """Columns of `rows` pickled objects, in every place in which a type can stand."""
    pickles = pa.array([pickle.dumps(trap)] * rows, pa.large_binary())
    offsets = pa.array(range(rows + 1), pa.int32())
    value, names = field_of("value", pa.large_binary(), OBJECTS), pa.array(["k"] * rows)
    struct = pa.StructArray.from_arrays([pickles], fields=[value])
    return {
        "plain": (field_of("plain", pa.large_binary(), OBJECTS), pickles),
        "list": _column("list", pa.ListArray.from_arrays(offsets, pickles, type=pa.list_(value))),
        "large_list": _column(
            "large_list", pa.LargeListArray.from_arrays(offsets.cast(pa.int64()), pickles, type=pa.large_list(value))
        ),
        "struct": _column("struct", struct),
        "list_of_structs": _column("list_of_structs", pa.ListArray.from_arrays(offsets, struct)),
        "map": _column(
            "map",
            pa.MapArray.from_arrays(
                offsets, names, pickles, type=pa.map_(pa.field("key", pa.string(), nullable=False), value)
            ),
        ),
    }


def _column(name: str, array: pa.Array) -> tuple[pa.Field, pa.Array]:
    return pa.field(name, array.type), array


def hostile_table(trap: Trap, **columns: list[Any]) -> pa.Table:
    """A table with these columns, and such objects beside them."""
    rows = len(next(iter(columns.values())))
    given = {name: _column(name, pa.array(values)) for name, values in columns.items()} | objects(trap, rows)
    return pa.table([array for _, array in given.values()], schema=pa.schema([field for field, _ in given.values()]))


def _string(text: bytes) -> bytes:
    """A string of Thrift's compact protocol: its length, and the text."""
    length, number = b"", len(text)
    while number > 0x7F:
        length, number = length + bytes([number & 0x7F | 0x80]), number >> 7
    return length + bytes([number]) + text


# The pair of the key "ARROW:schema" and a schema as its value, from a plain schema and an evil one. `\x18` is a field
# whose id is one more than the last one's, `\x08` one whose id is written out, twice as large.
KEY = _string(b"ARROW:schema")
PAIRS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "as it is written": lambda plain, evil: b"\x18" + KEY + b"\x18" + _string(evil),
    "two values": lambda plain, evil: b"\x18" + KEY + b"\x18" + _string(plain) + b"\x08\x04" + _string(evil),
    "value id written out": lambda plain, evil: b"\x18" + KEY + b"\x08\x04" + _string(evil),
    "key id written out": lambda plain, evil: b"\x08\x02" + KEY + b"\x18" + _string(evil),
    "value before the key": lambda plain, evil: b"\x28" + _string(evil) + b"\x08\x02" + KEY,
    "two keys": lambda plain, evil: b"\x18" + _string(b"x") + b"\x08\x02" + KEY + b"\x18" + _string(evil),
    "key between two values": lambda plain, evil: (
        b"\x28" + _string(plain) + b"\x08\x02" + KEY + b"\x18" + _string(evil) + b"\x18" + _string(b"x")
    ),
    "key behind its value": lambda plain, evil: (
        b"\x18" + KEY + b"\x18" + _string(plain) + b"\x08\x02" + KEY + b"\x18" + _string(evil)
    ),
}


def file_with_pair(name: str, table: pa.Table) -> bytes:
    """A Parquet file of `table`, in whose footer the schema is written as PAIRS says."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data = sink.getvalue().to_pybytes()
    footer = read_footer(pa.BufferReader(data))
    plain = base64.b64encode(table.schema.with_metadata(None).serialize().to_pybytes())
    plain = base64.b64encode(base64.b64decode(plain).replace(b"ARROW:extension:", b"-----:extension:"))
    evil = pq.ParquetFile(pa.BufferReader(data)).metadata.metadata[b"ARROW:schema"]
    before = PAIRS["as it is written"](b"", evil)
    assert before in footer
    changed = footer.replace(before, PAIRS[name](plain, evil))
    return data[: -8 - len(footer)] + changed + len(changed).to_bytes(4, "little") + b"PAR1"
