"""Packed linear layers: the products of the plain ones, and a row's bits are the same wherever it stands."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from rgtg.models.packed import PackedLinear, can_pack, pack, packed

DTYPES = [torch.float32, torch.bfloat16]
PLAIN = {nn.Linear, Conv1D}


def kinds(model):
    return {type(module) for module in model.modules()} & {*PLAIN, PackedLinear}


def is_packed(model, dtype):
    """A CPU that has no bfloat16 keeps its layers."""
    return kinds(model) == {PackedLinear} or not can_pack(dtype)


def layers(dtype, bias=True, sizes=(96, 200)):
    linear, other = nn.Linear(*sizes, bias=bias, dtype=dtype), Conv1D(sizes[1], sizes[0]).to(dtype)
    nn.init.normal_(other.bias)
    return linear, other


def test_float32_can_be_packed_on_every_machine():
    assert can_pack(torch.float32)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 8, 80, 512])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_the_plain_layer(rows, bias, dtype):
    x = torch.randn(rows, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    for layer in layers(dtype, bias):
        model = nn.Sequential(layer)
        pack(model)
        assert is_packed(model, dtype)
        # 96 terms of at most 4 * .1 each, added up in another order: 96 roundings of sums below 1, or one of bfloat16.
        bound = 96 * torch.finfo(torch.float32).eps + (torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0)
        torch.testing.assert_close(model(x), layer(x), atol=bound, rtol=bound)
        torch.testing.assert_close(model(x.view(rows, 1, 96))[:, 0], layer(x), atol=bound, rtol=bound)


@torch.inference_mode()
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_comes_out_alike_wherever_it_stands(dtype, threads):
    g = torch.Generator().manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for sizes in ((32, 48), (48, 32), (64, 64), (512, 96), (96, 515)):
            for layer in map(packed, layers(dtype, sizes=sizes)):
                row = torch.randn(1, sizes[0], generator=g).to(dtype)
                for rows in (2, 8, 16, 24, 32, 56, 80, 160, 320):
                    out = layer(row.repeat(rows, 1))
                    assert torch.equal(out, out[:1].expand_as(out)), (sizes, rows)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_a_model_whose_head_is_tied_to_its_embeddings(make_language, arch):
    model = AutoModelForCausalLM.from_pretrained(make_language(arch=arch), dtype=torch.bfloat16).eval()
    model.set_output_embeddings(nn.Linear(1, 1, bias=False, dtype=torch.bfloat16))
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected = model(ids).logits
        pack(model)
        assert is_packed(model, torch.bfloat16)
        torch.testing.assert_close(model(ids).logits, expected)


@torch.inference_mode()
def test_a_machine_that_cannot_keeps_its_layers(monkeypatch):
    def missing(*args):
        raise RuntimeError("mkldnn_bf16_device_check: this CPU has no avx512")

    can_pack.cache_clear()
    monkeypatch.setattr(PackedLinear, "forward", missing)
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.bfloat16))
    pack(model)
    can_pack.cache_clear()
    assert kinds(model) == {nn.Linear}
