"""Columns that pass through keep their values, to the last digit, whatever the files say of them."""

from datetime import date, datetime
from decimal import Decimal

import pyarrow as pa
import pytest

from rgtg.passed_through import CommonType, as_type


def chunked(values, kind=None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, kind)])


def common_type(columns) -> pa.DataType:
    common = CommonType()
    for column in columns:
        common.add(column)
    return common.type


def values_of(*columns) -> tuple[pa.DataType, list]:
    kind = common_type(columns)
    return kind, [value for column in columns for value in as_type(column, kind).to_pylist()]


NANOSECOND = chunked([1_767_225_600_000_000_001], pa.timestamp("ns"))
HOURS = chunked([datetime(2026, 1, 1, 13, 30)], pa.timestamp("us"))
BERLIN = chunked([datetime(2026, 1, 1, 13, 30)], pa.timestamp("us", "Europe/Berlin"))


@pytest.mark.parametrize(
    "column",
    [NANOSECOND, HOURS, BERLIN, chunked([date(2026, 1, 1)]), chunked([1.5], pa.float32()), chunked([b"\xff"])],
)
def test_a_type_on_which_all_files_agree_is_kept(column):
    kind = common_type([column, column, pa.chunked_array([pa.nulls(1)])])
    assert kind == column.type
    assert as_type(column, kind).equals(column)


@pytest.mark.parametrize(
    ("columns", "texts"),
    [
        ((chunked([date(2026, 1, 1)]), HOURS), ["2026-01-01", "2026-01-01 13:30:00.000000"]),
        ((NANOSECOND, HOURS), ["2026-01-01 00:00:00.000000001", "2026-01-01 13:30:00.000000"]),
        ((HOURS, BERLIN), ["2026-01-01 13:30:00.000000", "2026-01-01 14:30:00.000000+0100"]),
        ((chunked(["x"]), chunked([b"y"]), chunked([b"\xff"])), ["x", "y", "ff"]),
        ((chunked([1]), ["x"]), ["1", "x"]),
        ((chunked([True]), chunked([2])), ["true", "2"]),
        ((chunked([Decimal("1.20")]), chunked([7])), ["1.20", "7"]),
        ((chunked([{"k": 1}]), ["x", [1]]), ['{"k": 1}', "x", "[1]"]),
    ],
)
def test_values_of_files_that_disagree_become_text(columns, texts):
    assert values_of(*columns) == (pa.string(), texts)


def test_how_values_are_laid_out_is_no_disagreement():
    columns = (chunked(["x"]).dictionary_encode(), chunked(["y"], pa.large_string()), ["z"])
    assert values_of(*columns) == (pa.string(), ["x", "y", "z"])


def test_nulls_agree_with_everything():
    assert values_of(pa.chunked_array([pa.nulls(1)]), [None], chunked([3])) == (pa.int64(), [None, None, 3])
    assert values_of(pa.chunked_array([pa.nulls(1)])) == (pa.string(), [None])


def test_what_parquet_cannot_hold_is_text():
    assert values_of([{}]) == (pa.string(), ["{}"])
