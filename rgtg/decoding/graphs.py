"""Graphs: what a step launches on the device, recorded once a shape and launched again as a whole.

A small model's kernels run for less time than it takes to launch them one by one.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Steps between two looks at which rows have ended: looking waits for the device.
STRIDE = 8

# Runs what it is given once more, on the same memory, and gives the tensors that this leaves its results in.
Replay = Callable[[], Tensor]
Record = Callable[[Callable[[], Tensor]], Replay]


class Graphs:
    """`compute`, by graphs. A graph is trusted only after it has repeated a step bit for bit; if one ever does not, or
    cannot be recorded, all further steps are launched one by one, and the log says so.
    """

    def __init__(self, compute: Callable[[], Tensor], state: Callable[[], list[Tensor]], record: Record) -> None:
        """`compute` must read and write the same memory whenever it is called with the same shape, and must give the
        same again when the tensors of `state` are set back to what they were.
        """
        self.compute, self.state, self.record = compute, state, record
        self.replays: dict[Any, Replay] = {}
        self.trusted = True

    def __call__(self, shape: Any) -> Tensor:
        """One step of a shape, the first one eagerly: that warms up, and says what a graph must give."""
        if replay := self.replays.get(shape):
            return replay()
        before = [tensor.clone() for tensor in self.state()]
        output = self.compute()
        if self.trusted:
            self._record(shape, before, output)
        return output

    def _record(self, shape: Any, before: list[Tensor], output: Tensor) -> None:
        after = [tensor.clone() for tensor in self.state()]
        expected = output.clone()
        try:
            replay = self.record(self.compute)
            self._set(before)
            if _same([replay(), *self.state()], [expected, *after]):
                self.replays[shape] = replay
            else:
                self._distrust("did not repeat a step bit for bit")
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._distrust(f"could not be recorded ({str(error).splitlines()[0]})")
        self._set(after)

    def _set(self, values: list[Tensor]) -> None:
        for tensor, value in zip(self.state(), values, strict=True):
            tensor.copy_(value)

    def _distrust(self, reason: str) -> None:
        self.trusted = False
        self.replays.clear()
        logger.warning("a CUDA graph %s: steps are launched kernel by kernel, which is slower", reason)


def cuda_recorder() -> Record:
    """Records CUDA graphs, which share their memory: only one of them runs at a time."""
    return partial(_record_cuda, pool=torch.cuda.graph_pool_handle())


def _record_cuda(compute: Callable[[], Tensor], pool: Any) -> Replay:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        output = compute()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def _same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Bit for bit, but that all NaN are one."""
    return all(bool(((a == b) | ((a != a) & (b != b))).all()) for a, b in zip(ours, theirs, strict=True))
