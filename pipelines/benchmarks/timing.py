"""Timing: all ways run in turns, several times; their medians are compared."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from rgtg.errors import UserError


class Seconds(NamedTuple):
    wall: float
    cpu: float  # of this process


def measure(ways: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Seconds]:
    """The median seconds of each way. The first turn is a warm-up and does not count."""
    seen: dict[str, list[Seconds]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            began = Seconds(time.perf_counter(), time.process_time())
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seen[name].append(Seconds(time.perf_counter() - began.wall, time.process_time() - began.cpu))
    return {
        name: Seconds(*(statistics.median(column) for column in zip(*turns, strict=True)))
        for name, turns in seen.items()
    }


def numbers(text: str, option: str, count: int | None = None) -> list[int]:
    """The value of an option such as `1,8,32`, with `count` numbers. Raises UserError for anything else."""
    parts = text.split(",")
    found = [int(part) for part in parts if part.strip().isdigit()]
    if len(found) != len(parts) or 0 in found or (count and len(found) != count):
        many = f"{count} numbers" if count else "numbers"
        raise UserError(f"{option} is {text!r}; write {many} above 0 with commas between them")
    return found
