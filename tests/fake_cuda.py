"""A CUDA device that is not there: tensors without values, whose shapes, strides and devices are those of a card.

The product's own code runs on them, on any machine. What it asks of a value fails, and so does what mixes devices; and
attention returns the strides that torch's kernels of a card return. They say nothing of values, of speed, or of what a
kernel of a card refuses beyond the rules in `kernel_of`.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig

from rgtg.models.attention import ATTENTION

# The number is part of the name: without one, the guard below would say which card is meant.
CARD = torch.device("cuda:0")
CUDA, META = 1, 14  # their numbers among torch's device types

# Query heads and KV heads of models that people use: Llama-3, Qwen2.5, ... and those of many heads or of one.
HEADS = [(32, 8), (14, 2), (12, 2), (8, 4), (8, 1), (12, 12)]
GROUPED = ["llama", "qwen2", "qwen3", "mistral", "gemma"]
MODELS = [(arch, *heads) for arch in GROUPED for heads in HEADS] + [("gpt2", 12, 12)]
READS = {"item", "__int__", "__bool__", "__float__", "__index__"}


class Card(TorchFunctionMode):
    """What torch would do on a card, and cannot do here: choose a kernel of attention, and tell the host of values."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[str] = []  # of attention, as they were launched
        self.tell: Callable[[Tensor], Any] | None = None  # what the host is told of a tensor; nothing where it is None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == scaled_dot_product_attention.__name__:
            return self._attend(*args, **(kwargs or {}))
        if name in READS and self.tell and isinstance(args[0], FakeTensor):
            return self.tell(args[0])
        return func(*args, **(kwargs or {}))

    def _attend(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None):
        if torch.is_autocast_enabled("cuda"):  # attention is among what it computes in its dtype
            query, key, value = (tensor.to(torch.get_autocast_dtype("cuda")) for tensor in (query, key, value))
        kernel = kernel_of(query, key, value, attn_mask)
        self.kernels.append(kernel)
        options = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
        if kernel == "math":
            return scaled_dot_product_attention(query, key, value, attn_mask, **options)
        if kernel == "flash":
            return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, **options)[0]
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
        attend = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_attention")
        return attend(query, key, value, attn_mask, query.requires_grad, **options)[0]


def kernel_of(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> str:
    """The kernel of attention that torch takes on an H100 (`sdp_utils.cpp`), of those that are not switched off."""
    half, size, enabled = query.dtype != torch.float32, query.shape[-1], torch.backends.cuda
    inputs = [tensor for tensor in (query, key, value, mask) if tensor is not None]
    if query.shape[:2] != key.shape[:2] or any(tensor.stride(-1) != 1 for tensor in inputs):
        return "math"
    if enabled.cudnn_sdp_enabled() and half and size % 8 == 0 and size <= 128:
        return "cudnn"
    if enabled.flash_sdp_enabled() and half and size % 8 == 0 and size <= 256 and mask is None:
        return "flash"
    if enabled.mem_efficient_sdp_enabled() and size % (8 if half else 4) == 0:
        return "efficient"
    return "math"


@contextmanager
def fake_cuda() -> Iterator[Card]:
    """Tensors that are made in here have no values, and may be on the device `cuda`."""
    card = Card()
    with ExitStack() as stack:
        stack.enter_context(_device_guard())
        stack.enter_context(FakeTensorMode())
        for stand_in in (
            mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
            mock.patch("torch.cuda.is_bf16_supported", return_value=True),
            mock.patch("torch.utils.swap_tensors", _move),
            mock.patch("torch.autograd.backward", partial(_backward, card)),
            mock.patch.object(FakeTensorMode, "may_turn_const", return_value=False),
            mock.patch.object(FakeTensor, "tolist", lambda tensor: _tolist(card, tensor)),
        ):
            stack.enter_context(stand_in)
        stack.enter_context(card)
        yield card


def fake_model(
    auto: type, arch: str, heads: int, kv_heads: int, vocabulary: int, dtype: torch.dtype, **changes: Any
) -> Any:
    """A model of one layer on the card, its heads of the size 16."""
    config = AutoConfig.for_model(
        arch,
        vocab_size=vocabulary,
        num_labels=1,
        hidden_size=16 * heads,
        num_attention_heads=heads,
        num_hidden_layers=1,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **({"max_position_embeddings": 1024} | changes),
        **({} if arch == "gpt2" else {"num_key_value_heads": kv_heads, "head_dim": 16, "intermediate_size": 48}),
    )
    return auto.from_config(config, dtype=dtype, attn_implementation=ATTENTION).eval().to(CARD)


@contextmanager
def _device_guard() -> Iterator[None]:
    """A build of torch for CPUs switches to no CUDA device, not even in name: the guard of `meta` does nothing too."""
    if torch.backends.cuda.is_built():
        yield
        return
    library = next(Path(torch.__file__).parent.glob("lib/libc10.*"))
    registry = (ctypes.c_void_p * (META + 1)).in_dll(
        ctypes.CDLL(str(library)), "_ZN3c104impl26device_guard_impl_registryE"
    )
    registry[CUDA] = registry[META]
    try:
        yield
    finally:
        registry[CUDA] = None


def _move(parameter: FakeTensor, moved: FakeTensor) -> None:
    """`Module.to`, which torch does by swapping tensors, and refuses for those without values."""
    assert parameter.dtype == moved.dtype
    parameter.fake_device = moved.fake_device


def _tolist(card: Card, tensor: FakeTensor) -> Any:
    if card.tell:
        return card.tell(tensor)
    return [element.item() for element in tensor.reshape(-1)]  # raises, as every read


def _backward(card: Card, loss: Tensor, *_: Any, **__: Any) -> None:
    """What torch's engine does, which asks a CPU build for the streams of a card."""
    with card:  # for forwards that are computed again
        _walk_back(loss)


@torch.no_grad()
def _walk_back(loss: Tensor) -> None:
    grads: dict[Any, list[Tensor | None]] = {loss.grad_fn: [torch.ones_like(loss)]}
    for node in _consumers_first(loss.grad_fn):
        found = node(*grads.pop(node))
        for grad, (to, place) in zip(found if isinstance(found, tuple) else [found], node.next_functions, strict=True):
            if to is None or grad is None:
                continue
            expected = to._input_metadata
            grad = grad.sum_to_size(expected[place].shape).to(expected[place].dtype)
            assert grad.device == expected[place].device, f"{node} gave a gradient on {grad.device}"
            sums = grads.setdefault(to, [None] * len(expected))
            sums[place] = grad if sums[place] is None else sums[place] + grad


def _consumers_first(root: Any) -> list[Any]:
    """The nodes of a graph of gradients, each behind all that give it a gradient."""
    order, seen, stack = [], set(), [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(following, False) for following, _ in node.next_functions if following is not None]
    return order[::-1]
