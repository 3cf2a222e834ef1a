"""Rounding up, and padding to one width."""

import pytest
import torch

from rgtg.models.shapes import right_padded, round_up


def test_round_up():
    assert [round_up(n, 8) for n in (0, 1, 8, 9)] == [0, 8, 8, 16]


@pytest.mark.parametrize(
    ("rows", "width", "fill", "expected"),
    [
        ([[5, 6], [7]], 0, 0, [[5, 6], [7, 0]]),
        ([[5], []], 3, 9, [[5, 9, 9], [9, 9, 9]]),
        ([(5, 6, 7)], 2, 0, [[5, 6, 7]]),
    ],
    ids=["longest", "wider", "longer than asked"],
)
def test_rows_are_padded_on_the_right(rows, width, fill, expected):
    padded = right_padded(rows, width, fill)
    assert padded.tolist() == expected
    assert padded.dtype == torch.long
