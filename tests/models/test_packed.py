import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from rgtg.models import packed
from rgtg.models.packed import PackedLinear, pack


def kinds(model):
    return {type(module) for module in model.modules()} & {nn.Linear, PackedLinear}


def is_packed(model):
    """As it must be wherever oneDNN has bfloat16 for certain; another CPU may keep its layers."""
    return kinds(model) == {PackedLinear} or torch.backends.cpu.get_cpu_capability() != "AVX512"


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 8, 80, 512])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_the_plain_layer(rows, bias):
    g = torch.Generator().manual_seed(0)
    linear = nn.Linear(96, 200, bias=bias, dtype=torch.bfloat16)
    x = torch.randn(rows, 96, generator=g, dtype=torch.bfloat16)
    model = nn.Sequential(linear)
    pack(model)
    assert is_packed(model)
    torch.testing.assert_close(model(x), linear(x))
    torch.testing.assert_close(model(x.view(rows, 1, 96))[:, 0], linear(x))


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_a_model_whose_head_is_tied_to_its_embeddings(make_language, arch):
    model = AutoModelForCausalLM.from_pretrained(make_language(arch=arch), dtype=torch.bfloat16).eval()
    model.set_output_embeddings(nn.Linear(1, 1, bias=False, dtype=torch.bfloat16))
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected = model(ids).logits
        pack(model)
        assert is_packed(model)
        torch.testing.assert_close(model(ids).logits, expected)


@torch.inference_mode()
def test_float32_stays_as_it_is():
    model = nn.Sequential(nn.Linear(4, 4))
    pack(model)
    assert kinds(model) == {nn.Linear}


@torch.inference_mode()
def test_a_machine_that_cannot_keeps_its_layers(monkeypatch):
    def missing(*args):
        raise RuntimeError("mkldnn_bf16_device_check: this CPU has no avx512")

    packed._supported.cache_clear()
    monkeypatch.setattr(PackedLinear, "forward", missing)
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.bfloat16))
    pack(model)
    packed._supported.cache_clear()
    assert kinds(model) == {nn.Linear}
