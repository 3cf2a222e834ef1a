"""Hundreds of rotten inputs. Each ends as an error row with its reason, as a skipped file that is named, or as one
clear sentence; and no good row beside it is lost, unless the sentence refuses everything.
"""

import gzip
import io
import json
import os
import random
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import pairs, pairs_worker, prompts
from pipelines.generate_actor import Generator
from rgtg.chat import check_prompt
from rgtg.config import Generate, Models
from rgtg.decoding.decoder import Decoder
from rgtg.errors import RowError, UserError
from rgtg.input_files import InputFile, RawRows, find
from rgtg.input_rows import table_rows
from rgtg.models.packed import PackedLinear
from rgtg.parquet import open_parquet, parquet_fault
from rgtg.schemas import MESSAGES

GOOD = ["a good prompt", "another one", "the third 🙂"]
BROKEN = "the models gave no candidate a finite score"
INFINITE = "the reward model gave a reward that is not finite"


def line(**row: Any) -> bytes:
    return json.dumps(row).encode() + b"\n"


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


TALKS = [[user(text)] for text in GOOD]


@dataclass(frozen=True)
class Case:
    """What is put beside three good rows, and what becomes of it."""

    files: dict[str, Any]  # by name: bytes, a table, or a function that makes something at a path
    errors: tuple[str, ...] = ()  # what the reasons of its error rows say, in their order
    good: tuple[Any, ...] = ()  # its own prompts that come out
    skipped: tuple[tuple[str, str], ...] = ()  # names of files, and what the reasons say
    refused: str = ""  # what the sentence says that refuses everything
    duplicates: int = 0
    beside: list[Any] = field(default_factory=lambda: GOOD)


def jsonl(data: bytes, *errors: str, good: tuple[Any, ...] = (), **expected: Any) -> Case:
    return Case({"bad.jsonl": data}, errors, good, **expected)


def parquet(*errors: str, good: tuple[Any, ...] = (), expected: dict[str, Any] | None = None, **columns: Any) -> Case:
    return Case({"bad.parquet": pa.table(columns)}, errors, good, **(expected or {}))


def refused(sentence: str, files: dict[str, Any]) -> Case:
    return Case(files, refused=sentence)


def skipped(reason: str, name: str, content: Any) -> Case:
    return Case({name: content}, skipped=((name, reason),))


def as_bytes(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def one_bit(data: bytes, offset: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[offset] ^= 1 << bit
    return bytes(changed)


def raw_strings(*values: bytes) -> pa.Array:
    """A column that says it is text and need not be."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


def timestamps(value: int, unit: str = "us", zone: str | None = None) -> pa.Array:
    return pa.array([value], pa.int64()).cast(pa.timestamp(unit, zone))


# Parquet that is torn, or of which one bit flipped, in every layout that writers have.

ROWS = [f"prompt number {i} é" for i in range(20)]
WHOLE = pa.table({"prompt": ROWS, "n": list(range(20)), "m": [[{"a": "x"}]] * 20})
LAYOUTS = {
    "plain": as_bytes(WHOLE),
    "uncompressed": as_bytes(WHOLE, compression="none", use_dictionary=False),
    "groups": as_bytes(WHOLE, data_page_version="2.0", compression="zstd", row_group_size=7),
    "checksums": as_bytes(WHOLE, write_page_checksum=True),
}
LENGTHS = [len(LAYOUTS["plain"]) * i // 33 for i in range(1, 33)]
TRUNCATED = {
    f"after {length} bytes": skipped("not a readable Parquet file", "bad.parquet", LAYOUTS["plain"][:length])
    for length in LENGTHS
}
FLIPPED = {
    f"{layout}-{offset}.{bit}": (layout, one_bit(data, offset, bit))
    for layout, data in LAYOUTS.items()
    for dice in [random.Random(layout)]
    for offset, bit in sorted((dice.randrange(len(data)), dice.randrange(8)) for _ in range(16))
}

NO_PROMPT = {
    "int": ([1, 2], "of type int"),
    "float": ([1.5], "of type float"),
    "nan": ([float("nan")], "of type float"),
    "half": (pa.array([1.5], pa.float16()), "of type float"),
    "bool": ([True], "of type bool"),
    "binary": ([b"text"], "of type bytes"),
    "binary of no text": ([b"\xff\xfe"], "of type bytes"),
    "fixed binary": (pa.array([b"abcd"], pa.binary(4)), "of type bytes"),
    "decimal": ([Decimal("1.5")], "of type Decimal"),
    "date": ([date(2026, 1, 1)], "of type date"),
    "time": ([time(1, 2)], "of type time"),
    "duration": ([timedelta(1)], "of type timedelta"),
    "timestamp": ([datetime(2026, 1, 1)], "of type datetime"),
    "timestamp of the year 33658": (timestamps(10**12, "s"), r"row 1 is not readable \(date value out of range\)"),
    "timestamp of no known zone": (timestamps(10**15, "us", "Mars/Base"), "row 1 is not readable"),
    "struct": ([{"text": "x"}], "of type dict"),
    "struct of equal names": (
        pa.StructArray.from_arrays([pa.array(["x"]), pa.array(["y"])], ["k", "k"]),
        "row 1 is not readable",
    ),
    "map": (pa.array([[("role", "user")]], pa.map_(pa.string(), pa.string())), "no role and content"),
    "null": (pa.nulls(1), "the prompt is null"),
    "null text": (pa.nulls(1, pa.string()), "the prompt is null"),
    "null struct": (pa.nulls(1, pa.struct([("role", pa.string())])), "the prompt is null"),
    "null messages": (pa.nulls(1, MESSAGES), "the prompt is null"),
    "list of int": ([[1, 2]], "message 0 of the prompt has no role and content"),
    "list of text": ([["x"]], "message 0 of the prompt has no role and content"),
    "list of nulls": (pa.array([[None]], pa.list_(pa.null())), "message 0 of the prompt has no role and content"),
    "list of lists": ([[["x"]]], "message 0 of the prompt has no role and content"),
    "empty list": (pa.array([[]], MESSAGES), "an empty list"),
    "dictionary of int": (pa.array([7]).dictionary_encode(), "of type int"),
}
COLUMN_TYPES = {
    **{name: parquet(*[reason] * len(values), prompt=values) for name, (values, reason) in NO_PROMPT.items()},
    # These are text, however they are stored.
    "dictionary of text": parquet(good=("x", "y"), prompt=pa.array(["x", "y"]).dictionary_encode()),
    "large text": parquet(good=("x",), prompt=pa.array(["x"], pa.large_string())),
    "text view": parquet(good=("x",), prompt=pa.array(["x"], pa.string_view())),
    "text that is not UTF-8": parquet("row 1 is not readable", good=("fine",), prompt=raw_strings(b"\xff", b"fine")),
    "one of many that is not UTF-8": parquet(
        "row 51 is not readable",
        good=tuple(f"p{i}" for i in range(99) if i != 50),
        prompt=raw_strings(*[b"\xc3" if i == 50 else f"p{i}".encode() for i in range(99)]),
    ),
}

BAD_TALKS: dict[str, tuple[Any, str]] = {
    "no messages": ([], "an empty list"),
    "no role": ([{"content": "x"}], "message 0 of the prompt has no role and content"),
    "no content": ([{"role": "user"}], "message 0 of the prompt has no role and content"),
    "empty message": ([{}], "message 0 of the prompt has no role and content"),
    "null message": ([None], "message 0 of the prompt has no role and content"),
    "second null": ([user("x"), None], "message 1 of the prompt has no role and content"),
    "text for message": (["x"], "message 0 of the prompt has no role and content"),
    "nested messages": ([[user("x")]], "message 0 of the prompt has no role and content"),
    "null role": ([{"role": None, "content": "x"}], "the role of message 0 of the prompt is NoneType"),
    "role of int": ([{"role": 1, "content": "x"}], "the role of message 0 of the prompt is int"),
    "null content": ([user(None)], "the content of message 0 of the prompt is NoneType"),
    "content of int": ([user(3)], "the content of message 0 of the prompt is int"),
    "content of bool": ([user(True)], "the content of message 0 of the prompt is bool"),
    "content of an image": ([user([{"type": "image", "url": "x"}])], "the content of message 0 of the prompt is list"),
    "content of an object": ([user({"text": "x"})], "the content of message 0 of the prompt is dict"),
    "content of NaN": ([user(float("nan"))], "the content of message 0 of the prompt is float"),
    "role of a surrogate": ([{"role": "\ud800", "content": "x"}], "the role of message 0 .* lone surrogate"),
    "content of a surrogate": ([user("a\udfff")], "the content of message 0 .* lone surrogate"),
    "messages as text in a list of lists": ([[["user", "x"]]], "message 0 of the prompt has no role and content"),
}
MESSAGE_ROWS = {
    **{name: jsonl(line(prompt=talk), reason, beside=TALKS) for name, (talk, reason) in BAD_TALKS.items()},
    "empty members": jsonl(line(prompt=[user("x") | {"name": None, "tool_calls": []}]), good=([user("x")],)),
    "extra members": jsonl(line(prompt=[user("x") | {"tool_calls": [None]}]), "tool_calls, which would be lost"),
    "content of parts": jsonl(line(prompt=[user([{"type": "text", "text": "x"}])]), good=([user("x")],)),
    "one message alone": jsonl(line(prompt=user("x")), good=([user("x")],)),
    "nested nulls of Arrow": parquet(
        "the content of message 0 of the prompt is NoneType",
        "the role of message 1 of the prompt is NoneType",
        "message 0 of the prompt has no role and content",
        good=([user("x")],),
        prompt=pa.array([[user(None)], [user("x"), {"role": None, "content": "y"}], [None], [user("x")]], MESSAGES),
    ),
    "large texts of Arrow": parquet(
        good=([user("x")],),
        prompt=pa.array(
            [[user("x")]],
            pa.large_list(pa.struct([("role", pa.large_string()), ("content", pa.large_string())])),
        ),
    ),
    "roles that nobody knows": jsonl(
        line(prompt=[{"role": "", "content": ""}]), good=([{"role": "", "content": ""}],)
    ),
}
MESSAGE_ROWS = {name: Case(**{**vars(case), "beside": TALKS}) for name, case in MESSAGE_ROWS.items()}

# Strange, but text: it comes out as it went in.
STRANGE = {
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪",
    "NUL": "a\0b",
    "NUL alone": "\0",
    "empty": "",
    "spaces": " \t\r\n ",
    "separators": "a\u2028b\u2029c\x85d\x0be\x1cf",
    "right to left": "\u202eabc\u202c",
    "byte order mark": "\ufeffx",
    "no characters": "\uffff\ufffe",
    "combining": "e" + "\u0301" * 500,
    "special tokens": "<s></s><pad>",
    "template": "{{ raise_exception('x') }}{% for %}",
    "megabyte": "x " * 500_000,
    "JSON": '{"prompt": "inner"}',
}
TEXTS = {
    **{name: jsonl(line(prompt=text), good=(text,)) for name, text in STRANGE.items()},
    **{f"{name} in Parquet": parquet(good=(text,), prompt=[text]) for name, text in STRANGE.items()},
    "lone surrogate": jsonl(rb'{"prompt": "\ud800"}', "lone surrogate"),
    "lone low surrogate": jsonl(rb'{"prompt": "x\udc00y"}', "lone surrogate"),
    "surrogates in the wrong order": jsonl(rb'{"prompt": "\udc00\ud800"}', "lone surrogate"),
    "a pair of surrogates": jsonl(rb'{"prompt": "\ud83d\ude42"}', good=("🙂",)),
    "surrogate in UTF-8": jsonl(b'{"prompt": "\xed\xa0\x80"}', "lone surrogate"),
    "overlong UTF-8": jsonl(b'{"prompt": "\xc0\xaf"}', "line 1 is not UTF-8 text"),
}

NOT_JSON = "line 1 is not a JSON object"
ONE = line(prompt="fine")
JSON = {
    "cut within a row": jsonl(ONE + b'{"prompt": "cu', "line 2 is not a JSON object", good=("fine",)),
    "cut within a character": jsonl(ONE + '{"prompt": "é'.encode()[:-1], "line 2 is not UTF-8 text", good=("fine",)),
    "cut within an escape": jsonl(ONE + rb'{"prompt": "\ud8', "line 2 is not a JSON object", good=("fine",)),
    "array cut": jsonl(b'[{"prompt": "x"}, {"pro', NOT_JSON),
    "array of lines cut": jsonl(b'[\n{"prompt": "x"},\n{"prompt": "y"}\n', NOT_JSON, "line 2 is not", good=("y",)),
    "array of other things": jsonl(
        b'[1, {"prompt": "x"}, null]', NOT_JSON, "line 3 is not a JSON object", good=("x",)
    ),
    "array of nothing": jsonl(b"[]"),
    "latin-1": jsonl(ONE + '{"prompt": "café"}'.encode("latin-1"), "line 2 is not UTF-8 text", good=("fine",)),
    "UTF-16": jsonl((ONE * 2).decode().encode("utf-16"), "line 2 is not UTF-8", "line 3 is not", good=("fine",)),
    "mark of UTF-16": jsonl(b"\xff\xfe\n" + ONE, "line 1 is not", good=("fine",)),
    "BOM": jsonl(b"\xef\xbb\xbf" + ONE, good=("fine",)),
    "BOM alone": jsonl(b"\xef\xbb\xbf"),
    "BOM and an array": jsonl(b'\xef\xbb\xbf[{"prompt": "fine"}]', good=("fine",)),
    "BOM in the middle": jsonl(ONE + b"\xef\xbb\xbf" + line(prompt="x"), good=("fine", "x")),
    "blank lines alone": jsonl(b"\n \r\n\t\n"),
    "ends of Windows": jsonl(ONE.replace(b"\n", b"\r\n") * 2, good=("fine",), duplicates=1),
    "ends of an old Mac": jsonl(b'{"prompt": "x"}\r{"prompt": "y"}', NOT_JSON),
    "lists nested deeply": jsonl(b'{"prompt": ' + b"[" * 300 + b"]" * 300 + b"}", "no role and content"),
    "lists nested without end": jsonl(b'{"prompt": ' + b"[" * 100_000, NOT_JSON),
    "objects nested without end": jsonl(b'{"prompt": ' * 100_000, NOT_JSON),
    "NaN": jsonl(b'{"prompt": NaN}', "of type float"),
    "Infinity": jsonl(b'{"prompt": -Infinity}', "of type float"),
    "number of 5000 digits": jsonl(b'{"prompt": ' + b"1" * 5000 + b"}", NOT_JSON),
    "null": jsonl(b"null", NOT_JSON),
    "text": jsonl(b'"just text"', NOT_JSON),
    "number": jsonl(b"5", NOT_JSON),
    "no object": jsonl(b"prompt: x", NOT_JSON),
    "single quotes": jsonl(b"{'prompt': 'x'}", NOT_JSON),
    "comma at the end": jsonl(b'{"prompt": "x",}', NOT_JSON),
    "two rows in a line": jsonl(b'{"prompt": "x"} {"prompt": "y"}', NOT_JSON),
    "control character": jsonl(b'{"prompt": "a\tb"}', NOT_JSON),
    "NUL bytes": jsonl(b"\0\0\0\0\n" + ONE, "line 1 is not", good=("fine",)),
    "no prompt": jsonl(line(text="x"), "line 1 has no 'prompt'"),
    "prompt in another case": jsonl(line(Prompt="x"), "line 1 has no 'prompt'"),
    "empty object": jsonl(b"{}", "line 1 has no 'prompt'"),
    "printed over lines": jsonl(b'{\n"prompt": "x"\n}', NOT_JSON, "line 2", "line 3"),
    "prompts of every wrong type": jsonl(
        b"".join(line(prompt=value) for value in (None, 1, 1.5, True, {}, [])),
        *("is null", "type int", "type float", "type bool", "type dict", "empty list"),
    ),
    "gzip": jsonl(gzip.compress(b"", mtime=0)[:10], NOT_JSON + "|line 1 is not UTF-8"),
    "Parquet": jsonl(LAYOUTS["plain"][:9], "line 1 is not"),
}


def a_directory(path: Path) -> None:
    path.mkdir()
    pq.write_table(pa.table({"prompt": ["within"]}), path / "part-0.parquet")
    (path / "_SUCCESS").write_bytes(b"")
    (path / ".part-0.parquet.crc").write_bytes(b"crc")


NAMED = "its name does not end with "
FILES = {
    "zero bytes of Parquet": skipped("the file is empty", "bad.parquet", b""),
    "zero bytes of JSONL": skipped("the file is empty", "bad.jsonl", b""),
    "zero bytes of JSON": skipped("the file is empty", "bad.json", b""),
    "text named Parquet": skipped("not a readable Parquet file", "bad.parquet", b"prompt\nx\n"),
    "JSONL named Parquet": skipped("not a readable Parquet file", "bad.parquet", ONE * 20),
    "gzip named Parquet": skipped("not a readable Parquet file", "bad.parquet", gzip.compress(LAYOUTS["plain"])),
    "magic alone": skipped("not a readable Parquet file", "bad.parquet", b"PAR1PAR1"),
    "footer of four gigabytes": skipped("not a readable Parquet file", "bad.parquet", b"PAR1\xff\xff\xff\xffPAR1"),
    "encrypted": skipped("not a readable Parquet file", "bad.parquet", LAYOUTS["plain"][:-4] + b"PARE"),
    "Parquet twice": skipped("not a (readable|whole) Parquet file", "bad.parquet", b"x" + LAYOUTS["plain"] * 2),
    "two columns of one name": skipped(
        "two of its columns have the same name",
        "bad.parquet",
        pa.table([pa.array(["x"]), pa.array(["y"])], ["prompt", "prompt"]),
    ),
    "two other columns of one name": skipped(
        "the same name",
        "bad.parquet",
        pa.table([pa.array(["x"]), pa.array([1]), pa.array([2])], ["prompt", "n", "n"]),
    ),
    "gzip that was cut": skipped("cannot be unpacked|the file is empty", "bad.jsonl.gz", gzip.compress(ONE)[:-12]),
    "gzip twice": Case(
        {"bad.jsonl.gz": gzip.compress(gzip.compress(ONE))}, errors=("not UTF-8|not a JSON object",) * 1
    ),
    "CSV of ragged rows": skipped("not a readable CSV file", "bad.csv", b"prompt\nx,y\n"),
    "CSV of two columns of one name": skipped("the same name", "bad.csv", b"prompt,prompt\nx,y\n"),
    "CSV of zero rows": Case({"bad.csv": b"prompt\n"}),
    "CSV of an open quote": skipped("not a readable CSV file", "bad.csv", b'prompt,n\n"x,1\ny,2\n'),
    "CSV of no prompts": refused("has no column 'prompt'; its columns are a, b", {"bad.csv": b"a,b\n1,2\n"}),
    "a spreadsheet": skipped(NAMED, "bad.xlsx", b"PK"),
    "capitals": skipped(NAMED, "bad.PARQUET", LAYOUTS["plain"]),
    "half uploaded": skipped(NAMED, "bad.parquet.tmp", LAYOUTS["plain"]),
    "no suffix": skipped(NAMED, "bad", ONE),
    "pipe": skipped("not a regular file", "bad.jsonl", os.mkfifo),
    "name of two lines": skipped("the file is empty", "bad\nname.jsonl", b""),
    "name that is not UTF-8": refused("a name below .* is not UTF-8", {os.fsdecode(b"\xff.jsonl"): ONE}),
    "directory named as Parquet": Case({"bad.parquet": a_directory}, good=("within",)),
    "empty directory named as Parquet": Case({"bad.parquet": Path.mkdir}),
    "zero rows": parquet(prompt=pa.array([], pa.string())),
    "zero rows of int": parquet(prompt=pa.array([], pa.int64())),
    "no columns": refused("has no column 'prompt'", {"bad.parquet": pa.table({})}),
    "other columns": refused(
        "has no column 'prompt'; its columns are q, a", {"bad.parquet": pa.table({"q": [], "a": []})}
    ),
    "column of two lines": refused("its columns are a b$", {"bad.parquet": pa.table({"a\nb": [1]})}),
    "a column error": refused(
        "'error', which completions/ also has", {"bad.parquet": pa.table({"prompt": ["x"], "error": ["e"]})}
    ),
    "ten thousand tiny files": Case(
        {f"bad-{i:05d}.jsonl": line(prompt=f"p{i}") if i % 100 else b"{" for i in range(10_000)},
        errors=(NOT_JSON,) * 100,
        good=tuple(f"p{i}" for i in range(10_000) if i % 100),
    ),
}


def ids(*rows: tuple[Any, Any]) -> bytes:
    return b"".join(line(prompt_id=own, prompt=prompt) for own, prompt in rows)


TWICE = "the prompt_id {} stands for two different prompts .* make the ids unique"
IDS = {
    "twice": refused(TWICE.format("'x'"), {"bad.jsonl": ids(("x", "a"), ("x", "b"))}),
    "in two files": refused(TWICE.format("'x'"), {"bad.jsonl": ids(("x", "a")), "other.jsonl": ids(("x", "b"))}),
    "number and text": refused(TWICE.format("'7'"), {"bad.jsonl": ids((7, "a"), ("7", "b"))}),
    "empty": refused(TWICE.format("''"), {"bad.jsonl": ids(("", "a"), ("", "b"))}),
    "of two lines": refused(TWICE.format(r"'a\\nb'"), {"bad.jsonl": ids(("a\nb", "a"), ("a\nb", "b"))}),
    "NaN": refused(TWICE.format("'nan'"), {"bad.jsonl": ids((float("nan"), "a"), (float("nan"), "b"))}),
    "of a good and a bad row": jsonl(
        ids(("x", None), ("x", "a")), "the prompt is null .its prompt_id 'x' is", good=("a",)
    ),
    "of two bad rows": jsonl(ids(("x", None), ("x", 3)), "the prompt is null$", "of type int.*'x' is another row's"),
    "twice with one prompt": jsonl(ids(("x", "a"), ("x", "a")), good=("a",), duplicates=1),
    "null": jsonl(ids((None, "a"), (None, "b")), good=("a", "b")),
    "with NUL": jsonl(ids(("a\0", "a"), ("a", "b")), good=("a", "b")),
    "lists": jsonl(ids(([1], "a"), ({"k": 1}, "b")), good=("a", "b")),
    "lone surrogate": jsonl(ids(("\ud800", "a"), ("\ud801", "a")), *["prompt_id is not valid Unicode"] * 2),
    "binary": parquet(good=("a", "b"), prompt=["a", "b"], prompt_id=[b"\xff", b"\xfe"]),
    "of no type": parquet(good=("a",), prompt=["a"], prompt_id=pa.nulls(1)),
    "none, of equal prompts": jsonl(
        line(prompt="a") + line(prompt="b") + line(prompt="a"), good=("a", "b"), duplicates=1
    ),
}

# Columns that only pass through: their rows are good, whatever they hold.
THROUGH: dict[str, Any] = {
    "lone surrogate": "\ud800",
    "lone surrogate within": {"k": ["\udfff"]},
    "name of a surrogate within": {"\ud800": 1},
    "object without members": {},
    "list of such": [{}],
    "empty list": [],
    "list of null": [None],
    "number of 30 digits": 10**30,
    "number beyond int64": 2**63,
    "NaN": float("nan"),
    "nested a hundredfold": json.loads("[" * 100 + "]" * 100),
    "nested 300 times": json.loads('{"k":' * 300 + "0" + "}" * 300),
    "megabyte": "x" * 1_000_000,
    "NUL": "\0",
}
MIXED: dict[str, tuple[Any, Any]] = {
    "int and text": (1, "x"),
    "bool and int": (True, 2),
    "object and list": ({"k": 1}, [2]),
    "list of int and of text": ([1], ["x"]),
    "objects of other members": ({"k": 1}, {"l": "x"}),
    "member of two types": ({"k": 1}, {"k": "x"}),
    "surrogate and int": ("\ud800", 1),
    "null and object": (None, {"k": None}),
}
SHARDS: dict[str, tuple[pa.Array, pa.Array]] = {
    "timestamp and text": (timestamps(10**15), pa.array(["x"])),
    "decimal and text": (pa.array([Decimal("1.20")]), pa.array(["x"])),
    "binary and int": (pa.array([b"\xff"]), pa.array([1])),
    "binary and text": (pa.array([b"\xff"]), pa.array(["x"])),
    "date and int": (pa.array([date(2026, 1, 1)]), pa.array([1])),
    "UUID and text": (pa.array([b"0" * 16], pa.uuid()), pa.array(["x"])),
    "duration and object": (pa.array([timedelta(1)]), pa.array([{"k": 1}])),
    "int and float": (pa.array([1]), pa.array([1.5])),
    "null and object": (pa.nulls(1), pa.array([{"k": 1}])),
    "map and list": (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), pa.array([[1]])),
}
OTHER_COLUMNS = {
    **{f"a value: {name}": jsonl(line(prompt="x", c=value), good=("x",)) for name, value in THROUGH.items()},
    **{
        f"two values: {name}": jsonl(line(prompt="x", c=one) + line(prompt="y", c=two), good=("x", "y"))
        for name, (one, two) in MIXED.items()
    },
    **{
        f"two files: {name}": Case(
            {
                "bad.parquet": pa.table({"prompt": ["x"], "c": one}),
                "bad2.parquet": pa.table({"prompt": ["y"], "c": two}),
            },
            good=("x", "y"),
        )
        for name, (one, two) in SHARDS.items()
    },
    "a name of nothing": jsonl(line(**{"prompt": "x", "": 1}), good=("x",)),
    "a name with NUL": jsonl(line(**{"prompt": "x", "a\0b": 1}), good=("x",)),
    "a name of dots": jsonl(line(**{"prompt": "x", "a.b.c": 1}), good=("x",)),
    "a name of a surrogate": refused(
        "a column '.ud800', whose name is not valid Unicode", {"bad.jsonl": line(**{"prompt": "x", "\ud800": 1})}
    ),
    "a name of ours": refused(
        "a column 'completions', which completions/ also has", {"bad.jsonl": line(prompt="x", completions=[])}
    ),
    "text that is not UTF-8": parquet(
        "row 1 is not readable", good=("y",), prompt=["x", "y"], c=raw_strings(b"\xff", b"y")
    ),
    "a column that one file lacks": Case(
        {"bad.jsonl": line(prompt="x"), "bad2.jsonl": line(prompt="y", c=1)}, good=("x", "y")
    ),
    "text here, numbers there": Case(
        {"bad.parquet": pa.table({"prompt": [1]}), "bad2.parquet": pa.table({"prompt": ["y"]})},
        ("of type int",),
        ("y",),
    ),
    "text here, messages there": refused(
        "a run takes one kind of prompts, and .* is text, .* is messages", {"bad.jsonl": line(prompt=[user("x")])}
    ),
    "text and messages in a file": refused(
        "a run takes one kind of prompts", {"bad.jsonl": line(prompt="x") + line(prompt=[user("x")])}
    ),
}

PROMPTS = {
    "truncated": TRUNCATED,
    "column types": COLUMN_TYPES,
    "messages": MESSAGE_ROWS,
    "texts": TEXTS,
    "JSON": JSON,
    "files": FILES,
    "ids": IDS,
    "other columns": OTHER_COLUMNS,
}


def put(directory: Path, files: dict[str, Any]) -> None:
    directory.mkdir()
    for name, content in files.items():
        if isinstance(content, pa.Table):
            pq.write_table(content, directory / name)
        elif isinstance(content, bytes):
            (directory / name).write_bytes(content)
        else:
            content(directory / name)


def take_in(
    directory: Path, files: dict[str, Any], beside: list[Any] = GOOD
) -> tuple[dict[str, Any], list[dict[str, Any]], str | None]:
    """Counts and rows of these files with good ones beside them, or the sentence that refuses them.

    What has to hold of all that comes in is asserted here.
    """
    put(directory / "in", files | {"zzz-good.jsonl": b"".join(line(prompt=prompt) for prompt in beside)})
    target = directory / "prompts"
    try:
        counts = prompts.take_in(find([str(directory / "in")]), str(target), max_error_rate=1.0)
    except UserError as error:
        assert_clear(sentence := str(error))
        return {}, [], sentence
    rows = [row for file in sorted(target.iterdir()) for row in pq.read_table(file).to_pylist()]
    assert (counts["rows"], counts["errors"]) == (len(rows), sum(row["error"] is not None for row in rows))
    assert len({row["prompt_id"] for row in rows}) == len(rows)
    assert all((row["prompt"] is None) == bool(row["error"]) for row in rows)
    for reason in [row["error"] for row in rows if row["error"]] + list(counts["skipped_files"].values()):
        assert_clear(reason)
    assert [row["prompt"] for row in rows][-len(beside) :] == beside, "a good row is lost"
    return counts, rows, None


def assert_clear(sentence: str) -> None:
    assert sentence.strip()
    assert len(sentence.splitlines()) == 1
    assert len(sentence) < 1000
    assert "Traceback" not in sentence


def names_of(family: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    return [(name, case) for name, cases in family.items() for case in cases]


@pytest.mark.parametrize(("family", "name"), names_of(PROMPTS))
def test_prompts(tmp_path, family, name):
    case = PROMPTS[family][name]
    counts, rows, sentence = take_in(tmp_path, case.files, case.beside)
    if case.refused or sentence:
        assert case.refused, sentence
        assert sentence, "it was to be refused"
        assert re.search(case.refused, sentence)
        return
    assert [row["prompt"] for row in rows if not row["error"]] == [*case.good, *case.beside]
    reasons = [row["error"] for row in rows if row["error"]]
    assert len(reasons) == len(case.errors), reasons
    assert all(re.search(said, reason) for said, reason in zip(case.errors, reasons, strict=True)), reasons
    found = {Path(path).name: reason for path, reason in counts["skipped_files"].items()}
    assert found.keys() == {name for name, _ in case.skipped}
    assert all(re.search(reason, found[name]) for name, reason in case.skipped), found
    assert counts["duplicates"] == case.duplicates


@pytest.mark.parametrize("name", FLIPPED)
def test_one_bit_of_parquet(tmp_path, name):
    """Harmless, or one skipped file, or a sentence; where the pages have checksums, no text is another one either."""
    layout, data = FLIPPED[name]
    counts, rows, sentence = take_in(tmp_path, {"bad.parquet": data})
    if sentence:
        assert "has no column 'prompt'" in sentence
    elif counts["skipped_files"]:
        assert len(rows) == len(GOOD)
    else:
        assert counts["rows"] + counts["duplicates"] == len(ROWS) + len(GOOD), "rows are lost silently"
        if layout == "checksums":
            assert [row["prompt"] for row in rows] == ROWS + GOOD


def test_no_bit_loses_a_row():
    """A bit of every byte of a file with many row groups, whose footer counts them in several places."""
    data = as_bytes(pa.table({"prompt": ROWS}), row_group_size=5)
    dice = random.Random(5)
    faults = 0
    for offset in range(0, len(data), 3):
        changed = one_bit(data, offset, dice.randrange(8))
        if parquet_fault(pa.BufferReader(changed)):
            faults += 1
        else:
            assert len(table_rows(open_parquet(pa.BufferReader(changed)).read())) == len(ROWS), offset
    assert len(data) / 3 / 4 < faults < len(data) / 3


NAMES = st.sampled_from(["prompt", "prompt_id", "error", "completions", "c", "d", "", "\ud800", "a\nb"])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(), max_size=5),
    st.sampled_from([10**30, 2**63, "\ud800", "x\0"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS | st.just([user("x")]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=4) | st.fixed_dictionaries(
    {"prompt": st.text(st.characters(), max_size=3)}, optional={"c": VALUES, "d": VALUES, "prompt_id": SCALARS}
)


@settings(max_examples=60, deadline=None)
@given(st.lists(OBJECTS | VALUES, max_size=4))
def test_any_rows_of_json(rows):
    first = line(prompt="a row, since an array in front would be the whole file")
    data = first + b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    with tempfile.TemporaryDirectory() as directory:
        counts, found, sentence = take_in(Path(directory), {"bad.jsonl": data})
    if sentence:
        assert re.search("rename it|two different prompts|one kind of prompts", sentence)
        return
    assert counts["rows"] + counts["duplicates"] == 1 + len(rows) + len(GOOD)
    good = {row["prompt"] for row in rows if isinstance(row, dict) and isinstance(row.get("prompt"), str)}
    bad_ids = any(isinstance(row, dict) and row.get("prompt_id") is not None for row in rows)
    assert bad_ids or {text for text in good if check_prompt(text) is None} <= {row["prompt"] for row in found}


# Preference pairs.

PAIRS = [{"prompt": f"p{i}", "chosen": " yes", "rejected": " no"} for i in range(3)]
PAIR_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "neither chosen and rejected nor"),
    "prompt alone": ({"prompt": "p"}, "neither chosen and rejected nor"),
    "no rejected": ({"prompt": "p", "chosen": "a"}, "rejected is missing"),
    "null chosen": ({"prompt": "p", "chosen": None, "rejected": "b"}, "chosen is missing"),
    "chosen of int": ({"prompt": "p", "chosen": 1, "rejected": "b"}, "chosen is neither text nor"),
    "chosen of float": ({"prompt": "p", "chosen": float("nan"), "rejected": "b"}, "chosen is neither text nor"),
    "chosen of bool": ({"prompt": "p", "chosen": True, "rejected": "b"}, "chosen is neither text nor"),
    "chosen of an object": ({"prompt": "p", "chosen": {}, "rejected": "b"}, "a message of chosen has no role"),
    "chosen of no messages": ({"prompt": "p", "chosen": [], "rejected": []}, "chosen is an empty list"),
    "chosen of null messages": ({"prompt": "p", "chosen": [None], "rejected": [None]}, "has no role or no text"),
    "chosen of int messages": ({"prompt": "p", "chosen": [1], "rejected": [2]}, "has no role or no text"),
    "null prompt": ({"prompt": None, "chosen": "a", "rejected": "b"}, "prompt is null"),
    "prompt of int": ({"prompt": 1, "chosen": "a", "rejected": "b"}, "prompt is neither text nor"),
    "prompt of messages without content": (
        {"prompt": [{"role": "user", "content": None}], "chosen": "a", "rejected": "b"},
        "a message of prompt has no role or no text",
    ),
    "prompt nested deeply": (
        {"prompt": json.loads("[" * 50 + "]" * 50), "chosen": "a", "rejected": "b"},
        "a message of prompt has no role or no text",
    ),
    "equal": ({"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen equals rejected"),
    "equal where cut": (
        {"prompt": "p", "chosen": "x" * 90 + "a", "rejected": "x" * 90 + "b"},
        r"within train_reward\.max_length",
    ),
    "text and messages": ({"prompt": "p", "chosen": "a", "rejected": [user("b")]}, "is text, the other messages"),
    "user at the end": ({"chosen": [user("a")], "rejected": [user("b")]}, "does not end with an assistant turn"),
    "no common prompt": ({"chosen": "yes", "rejected": "no"}, "does not share its prompt"),
    "tied": ({"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 1}, "tied"),
    "one completion": ({"prompt": "p", "responses": ["a"], "rewards": [1.0]}, "fewer than two completions"),
    "rewards of NaN": ({"prompt": "p", "responses": ["a", "b"], "rewards": [float("nan")] * 2}, "fewer than two"),
    "rewards of infinity": ({"prompt": "p", "responses": ["a", "b"], "rewards": [float("inf"), 1.0]}, "fewer than"),
    "too few rewards": ({"prompt": "p", "responses": ["a", "b"], "rewards": [1.0]}, "not one score for each"),
    "null rewards": ({"prompt": "p", "responses": ["a", "b"], "rewards": None}, "not one score for each"),
    "responses of text": ({"prompt": "p", "responses": "ab", "rewards": [1.0, 2.0]}, "not a list"),
    "prompt without room": ({"prompt": "p" * 200, "chosen": "a", "rejected": "b"}, "leaves no room for a response"),
    "a system turn that the template refuses": (
        {"prompt": [{"role": "system", "content": "s"}, user("u")], "chosen": "a", "rejected": "b"},
        "the chat template refuses the prompt: no system turn",
    ),
    "a hundred kilobytes of prompt": ({"prompt": "x" * 100_000, "chosen": "a", "rejected": "b"}, "leaves no room"),
}
SURROGATES: dict[str, tuple[dict[str, Any], str]] = {
    "surrogate in chosen": ({"prompt": "p", "chosen": "\ud800", "rejected": "b"}, "chosen is not valid Unicode"),
    "surrogate in rejected": ({"prompt": "p", "chosen": "a", "rejected": "\ud800"}, "rejected is not valid Unicode"),
    "surrogate in prompt": ({"prompt": "\udfff", "chosen": "a", "rejected": "b"}, "prompt is not valid Unicode"),
    "surrogate in a message": ({"prompt": [user("\udfff")], "chosen": "a", "rejected": "b"}, "has no role or no text"),
}
# Strange, but pairs.
PAIRS_OF_STRANGE_TEXT = {
    "emoji": {"prompt": "🙂", "chosen": "👩‍👧", "rejected": "👨‍👧"},
    "NUL": {"prompt": "\0", "chosen": "\0a", "rejected": "\0b"},
    "empty prompt": {"prompt": "", "chosen": "a", "rejected": "b"},
    "null columns beside": {"prompt": "p", "chosen": "a", "rejected": "b", "scores": None, "completions": None},
}


@pytest.fixture(scope="module")
def tokenized(language_dir):
    """Tokenize raw rows as the job does, in a batch."""

    def tokenize(raw: RawRows) -> list[dict[str, Any]]:
        how = pairs_worker.Tokenize(language_dir, False, 64, "truncate", date(2026, 1, 1))
        rows = pairs_worker.rows_of(raw, "a file", 0.5, how)
        return pa.Table.from_pylist(rows, schema=pairs_worker.SCHEMA).to_pylist()

    return tokenize


def lines_of(data: bytes) -> RawRows:
    """The rows of a file of JSON, as the job reads them."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "pairs.jsonl").write_bytes(data)
        (raw,) = pairs_worker.raw_rows(pair_file(Path(directory, "pairs.jsonl")))
        return raw


def pair_file(path: Path) -> InputFile:
    return InputFile(str(path), str(path), path.stat().st_size)


def assert_beside(rows: list[dict[str, Any]], reasons: list[str]) -> None:
    """Good pairs are used, in front of and behind bad ones with these reasons."""
    assert len(rows) == 2 * len(PAIRS) + len(reasons)
    assert all(row["reason"] is None for row in rows[: len(PAIRS)] + rows[-len(PAIRS) :]), "a good pair is lost"
    for row, reason in zip(rows[len(PAIRS) : -len(PAIRS)], reasons, strict=True):
        assert (row["split"] == "unused") == bool(reason)
        assert re.search(reason, row["reason"]) if reason else row["chosen_ids"]
        if reason:
            assert_clear(row["reason"])


GOOD_LINES = b"".join(line(**pair) for pair in PAIRS)


@pytest.mark.parametrize("name", [*PAIR_ROWS, *SURROGATES])
def test_pairs_of_json(tokenized, name):
    row, reason = (PAIR_ROWS | SURROGATES)[name]
    assert_beside(tokenized(lines_of(GOOD_LINES + line(**row) + GOOD_LINES)), [reason])


@pytest.mark.parametrize("name", PAIRS_OF_STRANGE_TEXT)
def test_strange_pairs(tokenized, name):
    row = PAIRS_OF_STRANGE_TEXT[name]
    assert_beside(tokenized(lines_of(GOOD_LINES + line(**row) + GOOD_LINES)), [""])


PAIR_LINES: dict[str, tuple[bytes, list[str]]] = {
    "not JSON": (b"nothing\n", ["the line is not a JSON object"]),
    "cut": (b'{"prompt": "p", "chos\n', ["the line is not a JSON object"]),
    "not UTF-8": (b'{"prompt": "\xff"}\n', ["the line is not UTF-8 text"]),
    "array": (b"[1]\n", ["the line is not a JSON object"]),
    "nested without end": (b'{"chosen": ' + b"[" * 100_000 + b"\n", ["the line is not a JSON object"]),
    "null": (b"null\n", ["the line is not a JSON object"]),
    "NaN": (b"NaN\n", ["the line is not a JSON object"]),
    "BOM": (b"\xef\xbb\xbf" + line(prompt="p", chosen="a", rejected="b"), [""]),
    "blank": (b"\n\r\n  \n", []),
    "gzip": (gzip.compress(b"", mtime=0)[:10] + b"\n", ["the line is not"]),
}


@pytest.mark.parametrize("name", PAIR_LINES)
def test_lines_of_pairs(tokenized, name):
    data, reasons = PAIR_LINES[name]
    assert_beside(tokenized(lines_of(GOOD_LINES + data + GOOD_LINES)), reasons)


def rows_of_arrow(name: str) -> dict[str, Any]:
    return {column: value for column, value in PAIR_ROWS[name][0].items() if value is not None}


NOT_READABLE = "the row is not readable"
PAIR_COLUMNS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "chosen of int": ({"prompt": ["p"], "chosen": [1], "rejected": [2]}, ["chosen is neither text nor"]),
    "chosen of binary": ({"prompt": ["p"], "chosen": [b"a"], "rejected": [b"b"]}, ["chosen is neither text nor"]),
    "chosen of struct": (
        {"prompt": ["p"], "chosen": [user("a")], "rejected": ["b"]},
        ["one of chosen and rejected is text"],
    ),
    "chosen of timestamp": (
        {"prompt": ["p"], "chosen": [datetime(2026, 1, 1)], "rejected": ["b"]},
        ["chosen is neither text nor"],
    ),
    "chosen of null": ({"prompt": ["p"], "chosen": pa.nulls(1), "rejected": ["b"]}, ["chosen is missing"]),
    "dates beyond all": ({"prompt": timestamps(10**12, "s"), "chosen": ["a"], "rejected": ["b"]}, [NOT_READABLE]),
    "text that is not UTF-8": (
        {"prompt": ["p", "q"], "chosen": raw_strings(b"\xff", b"a"), "rejected": ["b", "b"]},
        [NOT_READABLE, ""],
    ),
    "dictionary": ({"prompt": pa.array(["p"]).dictionary_encode(), "chosen": ["a"], "rejected": ["b"]}, [""]),
    "large text": (
        {"prompt": ["p"], "chosen": pa.array(["a"], pa.large_string()), "rejected": pa.array(["b"], pa.string_view())},
        [""],
    ),
}


@pytest.mark.parametrize("name", PAIR_COLUMNS)
def test_pairs_of_parquet(tokenized, tmp_path, name):
    columns, reasons = PAIR_COLUMNS[name]
    put(tmp_path / "in", {"bad.parquet": pa.table(columns)})
    file = pair_file(tmp_path / "in" / "bad.parquet")
    assert pairs._fault(file) is None
    good = RawRows(pa.Table.from_pylist(PAIRS), is_json=False)
    assert_beside([row for raw in (good, *pairs_worker.raw_rows(file), good) for row in tokenized(raw)], reasons)


PAIR_TABLE = pa.table({name: [f"{name} of {i}" for i in range(30)] for name in ("prompt", "chosen", "rejected")})
PAIR_LAYOUTS = {"plain": as_bytes(PAIR_TABLE), "groups": as_bytes(PAIR_TABLE, row_group_size=8, compression="none")}
PAIR_FILES: dict[str, tuple[Any, str]] = {
    **{
        f"cut after {length} bytes": (PAIR_LAYOUTS["plain"][:length], "not a readable Parquet file")
        for length in range(0, len(PAIR_LAYOUTS["plain"]), len(PAIR_LAYOUTS["plain"]) // 9)
    },
    "text": (b"prompt\n", "not a readable Parquet file"),
    "gzip": (gzip.compress(PAIR_LAYOUTS["plain"]), "not a readable Parquet file"),
    "a page of zeros": (
        PAIR_LAYOUTS["groups"][:4] + b"\0" * 200 + PAIR_LAYOUTS["groups"][204:],
        "not a readable Parquet file",
    ),
    "two columns of one name": (pa.table([pa.array(["x"])] * 2, ["chosen", "chosen"]), "the same name"),
    "a directory": (Path.mkdir, "not a readable Parquet file"),
}
PAIR_FLIPS = {
    f"{layout}-{offset}.{bit}": one_bit(data, offset, bit)
    for layout, data in PAIR_LAYOUTS.items()
    for dice in [random.Random(layout)]
    for offset, bit in sorted((dice.randrange(len(data)), dice.randrange(8)) for _ in range(12))
}


@pytest.mark.parametrize("name", PAIR_FILES)
def test_files_of_pairs_that_cannot_be_read(tmp_path, name):
    content, reason = PAIR_FILES[name]
    put(tmp_path / "in", {"bad.parquet": content})
    found = pairs._fault(pair_file(tmp_path / "in" / "bad.parquet"))
    assert found
    assert re.search(reason, found)
    assert_clear(found)


def test_a_line_of_pairs_that_only_a_deeper_stack_cannot_read(tokenized):
    """A worker's is deeper in one of its tasks than in another."""

    def deeper(frames: int, call: Callable[[], Any]) -> Any:
        return deeper(frames - 1, call) if frames else call()

    raw = lines_of(GOOD_LINES + b'{"chosen": ' + b"[" * 700 + b"]" * 700 + b"}")
    assert tokenized(raw)[-1]["split"] == "unused"
    rows = deeper(300, lambda: tokenized(raw))
    assert rows[-1]["reason"] == "the line is not a JSON object"
    assert [row["split"] for row in rows[:-1]] == [row["split"] for row in tokenized(raw)[:-1]]


def test_files_of_pairs_without_a_byte(tmp_path):
    put(tmp_path / "in", {"bad.jsonl": b""})
    file = pair_file(tmp_path / "in" / "bad.jsonl")
    assert pairs._fault(file) == "the file is empty"
    with pytest.raises(UserError, match="changed while the pairs were read: the file is empty"):
        list(pairs_worker.raw_rows(file))


@pytest.mark.parametrize("name", PAIR_FLIPS)
def test_one_bit_of_pairs(tokenized, tmp_path, name):
    put(tmp_path / "in", {"bad.parquet": PAIR_FLIPS[name]})
    file = pair_file(tmp_path / "in" / "bad.parquet")
    if found := pairs._fault(file):
        assert_clear(found)
    else:  # a column whose name is another now is one that these pairs do not have
        assert sum(len(tokenized(raw)) for raw in pairs_worker.raw_rows(file)) == PAIR_TABLE.num_rows


def test_a_file_without_pairs_is_one_sentence(tmp_path):
    put(tmp_path / "in", {"bad.parquet": pa.table({"text": ["x"], "b\nc": [1]})})
    with pytest.raises(UserError, match="holds no preference pairs: its columns are b c, text") as raised:
        pairs._fault(pair_file(tmp_path / "in" / "bad.parquet"))
    assert_clear(str(raised.value))


# Models.


class Board:
    """What the driver would count."""

    def __init__(self):
        self.add = SimpleNamespace(remote=lambda **amounts: None)
        self.log = SimpleNamespace(remote=lambda text: None)


def actor(language: str, reward: str | None, **changes: Any) -> Generator:
    chosen = {"prompts": ["x"], "samples": 2, "max_new_tokens": 4, "slots": 8, **changes}
    return Generator(Models(language=language, device="cpu"), reward, Generate(**chosen), seed=5, progress=Board())


def complete(generator: Generator, batch: list[Any]) -> list[dict[str, Any]]:
    kind = MESSAGES if isinstance(next(p for p in batch if p is not None), list) else pa.string()
    names = [str(i) for i in range(len(batch))]
    table = {"prompt_id": names, "prompt": pa.array(batch, kind), "error": pa.nulls(len(batch), pa.string())}
    return generator(pa.table(table)).to_pylist()


@pytest.fixture(scope="module")
def generator(language_dir, reward_dir) -> Generator:
    return actor(language_dir, reward_dir)


def assert_completed(row: dict[str, Any]) -> None:
    assert row["error"] is None
    assert [0 < c["num_tokens"] <= 4 for c in row["completions"]] == [True, True]


ODD_PROMPTS: dict[str, tuple[Any, str | None]] = {
    "null": (None, "the prompt is null"),
    "megabyte": ("x" * 1_000_000, "the prompt has 1000001 tokens, more than max_prompt_tokens"),
    "one token too long": ("x" * 127, "the prompt has 128 tokens, which leaves no room"),
    "just short enough": ("x" * 123, None),
    "empty": ("", None),
    "NUL": ("\0", None),
    "emoji": ("👩‍👩‍👧‍👦", None),
    "special tokens": ("</s></s><pad>", None),
}
ODD_TALKS: dict[str, tuple[Any, str | None]] = {
    "no messages": ([], "an empty list"),
    "null content": ([user(None)], "the content of message 0 of the prompt is NoneType"),
    "null message": ([None], "no role and content"),
    "a role that the template refuses": ([{"role": "system", "content": "x"}], "refuses the prompt: no system turn"),
    "an empty role": ([{"role": "", "content": "x"}], None),
    "an assistant who said nothing": ([user("x"), {"role": "assistant", "content": ""}], None),
    "nothing said": ([user("")], None),
    "too long": ([user("x" * 200)], "leaves no room"),
}


@pytest.mark.parametrize("name", ODD_PROMPTS)
def test_prompts_in_the_actor(generator, name):
    prompt, reason = ODD_PROMPTS[name]
    check_company(complete(generator, [*GOOD, prompt, *GOOD]), reason)


@pytest.mark.parametrize("name", ODD_TALKS)
def test_messages_in_the_actor(generator, name):
    prompt, reason = ODD_TALKS[name]
    check_company(complete(generator, [*TALKS, prompt, *TALKS]), reason)


def check_company(rows: list[dict[str, Any]], reason: str | None) -> None:
    odd = rows.pop(len(GOOD))
    for row in rows:
        assert_completed(row)
    if reason is None:
        assert_completed(odd)
    else:
        assert odd["completions"] is None
        assert re.search(reason, odd["error"])
        assert_clear(odd["error"])


def fill(value: float, which: Callable[[Decoder], Any], rows: Any = slice(None)) -> Callable[[Decoder], None]:
    """Write `value` into the weights of a layer, packed or not."""

    @torch.no_grad()
    def spoil(decoder: Decoder) -> None:
        layer = which(decoder)
        if isinstance(layer, PackedLinear):
            weight = layer.packed.to_dense()
            weight[rows] = value
            layer.packed = PackedLinear(weight, None).packed
        else:
            layer.weight[rows] = value

    return spoil


def language_weights(decoder: Decoder) -> Any:
    return decoder.language.model.lm_head


def reward_weights(decoder: Decoder) -> Any:
    return decoder.scorer.models[0].head


def within(decoder: Decoder) -> Any:
    return decoder.language.model.model.layers[0].self_attn.v_proj


SPOILT: dict[str, tuple[str, Callable[[Decoder], None], str]] = {
    "language of NaN": ("pargs", fill(torch.nan, language_weights), BROKEN),
    "language of infinity": ("pargs", fill(torch.inf, language_weights), BROKEN),
    "language of NaN, unguided": ("unguided", fill(torch.nan, language_weights), BROKEN),
    "language of NaN within": ("pargs", fill(torch.nan, within), BROKEN),
    "language of NaN under a search": ("best-of-n", fill(torch.nan, language_weights), BROKEN),
    "one token of NaN": ("unguided", fill(torch.nan, language_weights, rows=70), BROKEN),
    "one token of infinity": ("unguided", fill(torch.inf, language_weights, rows=70), BROKEN),
    "reward of NaN": ("pargs", fill(torch.nan, reward_weights), BROKEN),
    "reward of infinity": ("pargs", fill(torch.inf, reward_weights), BROKEN),
    "reward of minus infinity": ("pargs-greedy", fill(-torch.inf, reward_weights), BROKEN),
    "reward of infinity, unguided": ("unguided", fill(torch.inf, reward_weights), INFINITE),
    "reward of infinity under a search": ("best-of-n", fill(torch.inf, reward_weights), INFINITE),
    "reward of NaN under blocks": ("cd-blockwise", fill(torch.nan, reward_weights), INFINITE),
}


@pytest.mark.parametrize("name", SPOILT)
def test_weights_that_are_not_finite(language_dir, reward_dir, name):
    method, spoil, reason = SPOILT[name]
    generator = actor(language_dir, reward_dir, method=method)
    spoil(generator.decoder)
    rows = complete(generator, GOOD)
    assert [row["prompt"] for row in rows] == GOOD
    for row in rows:
        assert row["completions"] is None
        assert re.match(re.escape(reason), row["error"])
        assert_clear(row["error"])


@pytest.mark.parametrize("method", ["pargs", "unguided", "cd-blockwise"])
@pytest.mark.parametrize("side", ["language", "reward"])
def test_prompts_of_one_poisonous_character_harm_no_other(language_dir, reward_dir, method, side):
    """Their NaN stays behind in rows of the caches, which the next prompts get."""
    batch = [*GOOD, "a q", "q", *GOOD[::-1], "qqq", "and more"]
    expected, found = (actor(language_dir, reward_dir, method=method, slots=2) for _ in range(2))
    token = expected.decoder.language.tokenizer("q", add_special_tokens=False).input_ids[0]
    for generator in (expected, found):  # the character is never written, only read
        generator.decoder.language.model.lm_head.register_forward_hook(
            lambda module, given, logits: logits.index_fill(-1, torch.tensor([token]), -1e4)
        )
    model = found.decoder.language.model if side == "language" else found.decoder.scorer.models[0].model
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = torch.nan
    for prompt, row, whole in zip(batch, complete(found, batch), complete(expected, batch), strict=True):
        assert_completed(whole)
        if "q" in prompt:
            assert re.match(f"{BROKEN}|{INFINITE}", row["error"])
        else:
            assert row == whole


TOKENIZERS: dict[str, dict[str, Any]] = {
    "no pad token": {"pad": None},
    "pad is EOS": {"pad": "</s>"},
    "no EOS": {"eos": False},
    "no BOS": {"bos": False},
    "neither pad nor EOS": {"pad": None, "eos": False},
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_that_lack_tokens(make_language, make_reward, make_tokenizer, name):
    tokenizer = make_tokenizer(**TOKENIZERS[name])
    rows = complete(actor(make_language(tokenizer), make_reward(tokenizer)), GOOD)
    for row in rows:
        assert_completed(row)
        if not TOKENIZERS[name].get("eos", True):
            assert {c["finish_reason"] for c in row["completions"]} == {"length"}


def test_a_tokenizer_without_any_token_to_start_from(make_language, make_tokenizer):
    generator = actor(make_language(make_tokenizer(bos=False, eos=False)), None, method="unguided")
    check_company(complete(generator, [*GOOD, "", *GOOD]), "the prompt is empty and the model has no BOS token")


def test_messages_without_a_template_are_one_sentence(make_language, make_tokenizer):
    generator = actor(make_language(make_tokenizer()), None, method="unguided")
    with pytest.raises(UserError, match="has no chat template; give prompts as text") as raised:
        complete(generator, TALKS)
    assert not isinstance(raised.value, RowError)
    assert_clear(str(raised.value))
    assert_completed(complete(generator, GOOD)[0])


TEMPLATES = {
    "says nothing": ("{{ raise_exception('') }}", "refuses the prompt: TemplateError"),
    "says two lines": (r"{{ raise_exception('one\ntwo') }}", "refuses the prompt: one$"),
    "adds text and number": ("{{ messages[0].content + 1 }}", "refuses the prompt: can only concatenate"),
    "divides by zero": ("{{ 1 / 0 }}", "refuses the prompt: division by zero"),
    "wants what is not there": ("{{ messages[7].content.strip() }}", "refuses the prompt: .* has no"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_that_fail(make_language, make_tokenizer, name):
    """For prompts of a bad word alone: the others are completed."""
    template, reason = TEMPLATES[name]
    guarded = "{% if 'bad' in messages[0].content %}" + template + "{% endif %}{{ messages[0].content }}"
    generator = actor(make_language(make_tokenizer(template=guarded)), None, method="unguided")
    check_company(complete(generator, [*TALKS, [user("bad")], *TALKS]), reason)


def test_a_template_that_is_none_is_one_sentence(make_language, make_tokenizer):
    generator = actor(make_language(make_tokenizer(template="{% if %}")), None, method="unguided")
    with pytest.raises(UserError, match="the chat template of .* is broken") as raised:
        complete(generator, TALKS)
    assert_clear(str(raised.value))


def test_the_corpus_is_large():
    families = [*PROMPTS.values(), FLIPPED, PAIR_ROWS, SURROGATES, PAIRS_OF_STRANGE_TEXT, PAIR_LINES, PAIR_COLUMNS]
    families += [PAIR_FILES, PAIR_FLIPS, ODD_PROMPTS, ODD_TALKS, SPOILT, TOKENIZERS, TEMPLATES]
    assert sum(map(len, families)) >= 200
    contents = [repr(sorted(case.files.items())) for cases in PROMPTS.values() for case in cases.values()]
    assert len(set(contents)) == len(contents), "the same input twice"
