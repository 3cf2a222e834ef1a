"""Shapes that are rounded up, because the rounding of a matrix product depends on its shape."""

# The engine never changes a shape. In some libraries rounding depends on the place of a row too where rows are an odd
# number, so slots are always a multiple of this, or one.
SLOT_MULTIPLE = 8


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
