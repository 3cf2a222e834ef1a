"""Graphs: what a step launches on the device, captured once a shape and launched again as a whole.

A small model's kernels run for less time than it takes to launch them one by one.
"""

import gc
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rgtg.errors import first_line

logger = logging.getLogger(__name__)

# Steps between two looks at which slots have ended, since looking waits for the device. By arithmetic a slot that has
# ended idles for 3.5 steps. Not measured for want of a GPU: `python -m pipelines.benchmarks.constants STRIDE`.
STRIDE = 8

# Graphs that are kept; the oldest are of caches that were smaller. By arithmetic: all views of 16,384 positions.
MOST = 64

# Steps of a shape, launched kernel by kernel, until its capture is retried once: few beside a night, and enough for
# another process to free its memory.
RETRY = 100

# Runs what it is given once more, on the same memory, and gives the tensor that this leaves its result in.
Replay = Callable[[], Tensor]
Capture = Callable[[Callable[[], Tensor]], Replay]

# Ops that wait for the device have one of these tags: for a value, or for a number of values.
WAITING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
COPIES = ("_to_copy", "copy", "copy_")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")


class Graphs:
    """`compute`, by graphs. A graph is trusted only after it has reproduced a step bit for bit.

    If one ever does not, all further steps are launched kernel by kernel, and the log says so. If one cannot be
    captured, the steps of its shape are.
    """

    def __init__(self, compute: Callable[[], Tensor], state: Callable[[], list[Tensor]], capture: Capture) -> None:
        """`compute` must read and write the same memory whenever it is called with the same shape, and must give the
        same again when the tensors of `state` are set back to what they were.
        """
        self.compute, self.state, self.capture = compute, state, capture
        self.replays: dict[Any, Replay] = {}
        self.failed: dict[Any, int] = {}  # shapes whose capture failed, and their steps since the first time
        self.trusted = True

    def __call__(self, shape: Any) -> Tensor:
        """One step of a shape, the first one eagerly: that warms up, and says what a graph must give."""
        if replay := self.replays.get(shape):
            return replay()
        if not self.trusted or not self._is_due(shape):
            return self.compute()
        before = self._copies()
        with Watch() as watch:
            output = self.compute()
        if watch.asked:
            self._give_up(shape, f"a step waits for {watch.asked}")
        else:
            self._capture(shape, before, output)
        return output

    def _is_due(self, shape: Any) -> bool:
        """Whether to capture a shape: once where that works, at most twice where it does not."""
        if shape in self.failed:
            self.failed[shape] += 1
        return self.failed.get(shape, RETRY) == RETRY

    def _capture(self, shape: Any, before: list[Tensor], output: Tensor) -> None:
        after, expected = self._copies(), output.clone()
        try:
            replay = self.capture(self.compute)
            self._set(before)
            if _same([replay(), *self.state()], [expected, *after]):
                self.replays[shape] = replay
                self.failed.pop(shape, None)
            else:
                self._distrust()
        except RuntimeError as error:  # also where there is no memory for a graph, as there is for a step
            self._give_up(shape, first_line(error))
        self._set(after)
        while len(self.replays) > MOST:
            del self.replays[next(iter(self.replays))]

    def _copies(self) -> list[Tensor]:
        return [tensor.clone() for tensor in self.state()]

    def _set(self, values: list[Tensor]) -> None:
        for tensor, value in zip(self.state(), values, strict=True):
            tensor.copy_(value)

    def _give_up(self, shape: Any, reason: str) -> None:
        logger.warning(
            "a CUDA graph could not be captured (%s): steps of its shape are launched kernel by kernel, which is "
            "slower%s",
            reason,
            "" if shape in self.failed else f"; it is tried once more after {RETRY} of them",
        )
        self.failed.setdefault(shape, 0)
        while len(self.failed) > MOST:
            del self.failed[next(iter(self.failed))]

    def _distrust(self) -> None:
        self.trusted = False
        self.replays.clear()
        logger.warning(
            "a CUDA graph did not repeat a step bit for bit: all steps are launched kernel by kernel, which is slower"
        )


class Watch(TorchDispatchMode):
    """Notes an op that waits for the device: for a value, or for a copy from or to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = NotImplemented
        if func.namespace == "aten":
            with self:  # in inference mode an op arrives whole that consists of others
                output = func.decompose(*args, **kwargs)
        if output is NotImplemented:
            output = func(*args, **kwargs)
            if _waits(func, args, [args, kwargs, output]):
                self.asked = str(func)
        return output


def _waits(func: Any, args: Any, values: Any) -> bool:
    """Whether an op makes the host wait for the device, as far as its arguments and results (`values`) tell."""
    name = func.overloadpacket.__name__
    if name in INDEXING:
        masks = any(tensor.dtype in (torch.bool, torch.uint8) for tensor in args[1] if tensor is not None)
        # A number is filled in where a mask is; of anything else the places are counted first.
        waits = masks and not (name in INDEXING[1:] and args[2].numel() == 1)
    else:
        waits = not WAITING.isdisjoint(func.tags)
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    # A number on the host that an op computes with becomes an argument of its kernel.
    return waits or len({tensor.device for tensor in tensors if tensor.ndim or name in COPIES}) > 1


def cuda_capture(device: torch.device) -> Capture:
    """Captures CUDA graphs, which share their memory: only one of them runs at a time."""
    with torch.cuda.device(device):
        return partial(_capture_cuda, stream=torch.cuda.Stream(), pool=torch.cuda.graph_pool_handle())


def _capture_cuda(compute: Callable[[], Tensor], stream: torch.cuda.Stream, pool: Any) -> Replay:
    graph = torch.cuda.CUDAGraph()
    gc.collect()
    gc.disable()  # a graph that is collected while another one is captured spoils it
    try:
        with (
            torch.cuda.stream(stream),  # which is left again also where capture fails
            torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            output = compute()
    finally:
        gc.enable()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def _same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Bit for bit, but that all NaN are one."""
    return all(bool(((a == b) | ((a != a) & (b != b))).all()) for a, b in zip(ours, theirs, strict=True))
