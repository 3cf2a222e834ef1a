"""Input that tries to run code, and a way to see whether it did."""

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa

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
