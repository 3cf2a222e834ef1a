"""Parquet files of others: what is stored in them comes out, and nothing of them runs."""

import base64
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data  # noqa: F401  # registers the types that would run code
from hypothesis import given
from hypothesis import strategies as st

from rgtg.parquet import open_parquet, parquet_fault, plain_footer, read_footer
from tests.hostile import OBJECTS, PAIRS, Trap, field_of, file_with_pair, hostile_table, objects


def write(path, *columns: tuple[pa.Field, pa.Array]) -> str:
    schema = pa.schema([field for field, _ in columns])
    pq.write_table(pa.table([array for _, array in columns], schema=schema), path)
    return str(path)


def read(path) -> pa.Table:
    with pa.OSFile(str(path)) as source:
        return open_parquet(source).read()


@pytest.mark.parametrize("where", ["plain", "list", "large_list", "struct", "list_of_structs", "map"])
def test_python_objects_stay_the_bytes_that_they_are(tmp_path, where):
    trap = Trap(tmp_path)
    path = write(tmp_path / "a.parquet", objects(trap)[where])
    value = read(path)[where].to_pylist()[0]
    while not isinstance(value, bytes):
        value = list(value.values())[-1] if isinstance(value, dict) else value[-1]
    assert value == pickle.dumps(trap)
    with pa.OSFile(path) as source:
        assert parquet_fault(source) is None
    assert not trap.sprung
    pq.read_table(path).to_pylist()  # and it is a trap: Arrow alone would have stepped into it
    assert trap.sprung


@pytest.mark.parametrize("name", PAIRS)
def test_python_objects_stay_bytes_however_the_footer_is_written(tmp_path, name):
    trap = Trap(tmp_path)
    field, values = objects(trap)["plain"]
    data = file_with_pair(name, pa.table([values], schema=pa.schema([field])))
    file = open_parquet(pa.BufferReader(data))
    assert file.read()["plain"].to_pylist() == [pickle.dumps(trap)]
    assert not trap.sprung
    footer = read_footer(pa.BufferReader(data))
    assert plain_footer(footer) != footer, "and it is refused where another reader is to read it"
    pq.read_table(pa.BufferReader(data)).to_pylist()
    assert trap.sprung, "it is a trap"


@pytest.mark.parametrize("name", ["ray.data.arrow_tensor", "ray.data.arrow_tensor_v2", "pandas.period", "arrow.uuid"])
def test_an_extension_type_over_the_wrong_storage_is_its_storage(tmp_path, name):
    path = write(tmp_path / "a.parquet", (field_of("x", pa.int64(), name), pa.array([1])))
    assert read(path)["x"].to_pylist() == [1]


def test_types_that_only_arrow_has_are_kept(tmp_path):
    table = pa.table(
        {
            "zone": pa.array([1], pa.timestamp("ns", "Europe/Berlin")),
            "duration": pa.array([1], pa.duration("ns")),
            "dictionary": pa.array(["x"]).dictionary_encode(),
            "large": pa.array(["x"], pa.large_string()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").equals(table)


def test_logical_types_are_plain_too(tmp_path):
    pq.write_table(pa.table({"u": pa.array([b"0" * 16], pa.uuid())}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")["u"].type == pa.binary(16)


def test_a_long_footer_is_read_whole(tmp_path):
    table = pa.table({f"a column with quite a long name, number {i}": [i] for i in range(2000)})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").equals(table)


def test_encrypted_files_say_so(tmp_path):
    path = write(tmp_path / "a.parquet", (pa.field("x", pa.int64()), pa.array([1])))
    data = Path(path).read_bytes()
    assert parquet_fault(pa.BufferReader(data[:-4] + b"PARE")) == "not a readable Parquet file (it is encrypted)"


# Ways to hide the schema's key from who looks for it in its usual form: field ids written out, and other values.
HIDDEN = {
    "field id written out": b"ARROW:schema\x08\x04",
    "no value": b"ARROW:schema\x00",
    "length beyond the footer": b"ARROW:schema\x18\xff\xff\xff\x7f",
    "length without end": b"ARROW:schema\x18\xff\xff\xff\xff\xff\xff\xff",
    "no base64": b"ARROW:schema\x18\x04a\nb=",
    "base64 with bits left over": b"ARROW:schema\x18\x04QUJ=",
    "at the end": b"ARROW:schema",
}


@pytest.mark.parametrize("name", HIDDEN)
def test_a_schema_that_cannot_be_read_is_not_found_by_arrow_either(name):
    footer = b"before" + HIDDEN[name]
    plain = plain_footer(footer)
    assert len(plain) == len(footer)
    assert b"ARROW:schema" not in plain


@given(st.binary(max_size=40), st.lists(st.binary(max_size=12), max_size=4))
def test_no_name_of_an_extension_is_left_in_any_footer(noise, schemas):
    footer = noise
    for schema in schemas:
        value = base64.b64encode(schema + b"ARROW:extension:name" + schema)
        footer += b"\x18\x0cARROW:schema\x18" + bytes([len(value) % 128 | 0x80, len(value) // 128]) + value + noise
    plain = plain_footer(footer)
    assert len(plain) == len(footer)
    for part in plain.split(b"ARROW:schema\x18")[1:]:
        assert b"ARROW:extension:" not in base64.b64decode(part[2 : 2 + (part[0] & 0x7F) + 128 * part[1]])


def test_a_plain_footer_is_left_as_it_is(tmp_path):
    path = write(tmp_path / "a.parquet", (pa.field("x", pa.int64()), pa.array([1])))
    with pa.OSFile(path) as source:
        footer = read_footer(source)
    assert plain_footer(footer) == footer
    with pa.BufferOutputStream() as sink:
        pq.write_table(hostile_table(Trap(tmp_path), x=[1]), sink)
        footer = read_footer(pa.BufferReader(sink.getvalue()))
    assert OBJECTS in str(pq.read_schema(pa.BufferReader(sink.getvalue())).field("plain").type)
    assert plain_footer(footer) != footer
