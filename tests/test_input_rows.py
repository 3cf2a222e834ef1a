"""JSON as people write it: lines, an array, a byte order mark, and lines that are none."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgtg.input_rows import Row, json_lines, json_row

ROWS = [{"prompt": "one\u2028two\u2029\x85three"}, {"prompt": "four"}]


def json_rows(data: bytes) -> Iterator[tuple[int, Row | str]]:
    return ((number, json_row(line)) for number, line in json_lines(data))


@pytest.mark.parametrize("ensure_ascii", [True, False])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lines_and_arrays_are_the_same_rows(ensure_ascii, mark):
    lines = "\r\n\n".join(json.dumps(row, ensure_ascii=ensure_ascii) for row in ROWS).encode()
    array = json.dumps(ROWS, ensure_ascii=ensure_ascii, indent=2).encode()
    assert [row for _, row in json_rows(mark + lines)] == ROWS
    assert list(json_rows(mark + array)) == list(enumerate(ROWS, 1))


def test_what_is_wrong_with_a_row_stands_in_its_place():
    data = b'[1]\n{"a": 1}\n{"a": \n\xff\n"text"\n' + b"[" * 100_000
    rows = list(json_rows(data))
    assert [number for number, _ in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[1] == (2, {"a": 1})
    assert rows[3][1] == "not UTF-8 text"
    assert {rows[i][1] for i in (0, 2, 4, 5)} == {"not a JSON object"}
    assert list(json_rows(b"[1, {}]")) == [(1, "not a JSON object"), (2, {})]
    assert list(json_rows(b"")) == []


@given(st.binary(max_size=60))
def test_no_bytes_are_too_bad(data):
    assert all(isinstance(row, dict | str) for _, row in json_rows(data))
