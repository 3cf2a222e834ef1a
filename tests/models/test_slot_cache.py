"""SlotCache and packed attention against Hugging Face's own attention and cache."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM

from rgtg.models.attention import ATTENTION, BLOCK, additive_mask, packed_gqa, view_length
from rgtg.models.cache import SlotCache
from tests.tolerance import assert_alike


def both(directory):
    """The same model with its own attention and with ours."""
    load = AutoModelForCausalLM.from_pretrained
    return (
        load(directory, dtype=torch.float32, attn_implementation="sdpa").eval(),
        load(directory, dtype=torch.float32, attn_implementation=ATTENTION).eval(),
    )


def new_cache(model, rows):
    return SlotCache(model.config, rows, dtype=torch.float32, device=torch.device("cpu"))


def fill(model, cache, row, ids):
    """A prompt's keys and values, by the model's own cache, become those of a row."""
    cache.reserve(len(ids))
    past = model(input_ids=torch.tensor([ids]), use_cache=True).past_key_values
    layers = [(layer.keys[0], layer.values[0]) for layer in past.layers]
    cache.write_slot(row, tuple(torch.stack(tensors) for tensors in zip(*layers, strict=True)))


def step(model, cache, tokens, lengths):
    """One token a row behind `lengths` (B,) tokens of each."""
    cache.reserve(int(lengths.max()) + 1)
    cache.look(int(lengths.max()) + 1)
    cache.write_at(lengths[:, None])
    mask = (torch.arange(cache.view) <= lengths[:, None])[:, None, None]
    return model(
        input_ids=tokens[:, None],
        attention_mask=additive_mask(mask, torch.float32),
        position_ids=lengths[:, None],
        past_key_values=cache,
        use_cache=True,
    ).logits[:, 0]


@torch.no_grad()
@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen2", "qwen3"])
def test_ragged_rows_step_as_each_does_alone_in_a_dynamic_cache(make_language, arch):
    theirs, ours = both(make_language(arch=arch))
    g = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 259, (n,), generator=g).tolist() for n in (1, 5, 40, 31)]
    cache, pasts = new_cache(ours, len(prompts)), []
    for row, prompt in enumerate(prompts):
        alone = theirs(torch.tensor([prompt]), use_cache=True)  # a DynamicCache of its own
        pasts.append(alone.past_key_values)
        fill(ours, cache, row, prompt)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    for _ in range(30):  # past the first view of 32 slots
        tokens = torch.randint(3, 259, (len(prompts),), generator=g)
        logits = step(ours, cache, tokens, lengths)
        for row, past in enumerate(pasts):
            expected = theirs(tokens[row].view(1, 1), past_key_values=past, use_cache=True).logits[0, 0]
            assert_alike(logits[row], expected)
        lengths += 1


@torch.no_grad()
def test_a_row_that_is_filled_anew_forgets(language_dir):
    theirs, ours = both(language_dir)
    cache = new_cache(ours, 2)
    fill(ours, cache, 0, list(range(3, 60)))
    fill(ours, cache, 1, [1, 9, 8])
    fill(ours, cache, 0, [1, 7])
    logits = step(ours, cache, torch.tensor([5, 6]), torch.tensor([2, 3]))
    for row, ids in enumerate(([1, 7, 5], [1, 9, 8, 6])):
        assert_alike(logits[row], theirs(torch.tensor([ids])).logits[0, -1])


def filled(rows=3, slots=BLOCK):
    config = AutoConfig.for_model("llama", hidden_size=16, num_hidden_layers=2, num_attention_heads=4, vocab_size=9)
    config.num_key_value_heads = 2
    cache = SlotCache(config, rows, dtype=torch.float32, device=torch.device("cpu"))
    cache.reserve(slots)
    cache.keys.copy_(torch.randn(cache.keys.shape, generator=torch.Generator().manual_seed(0)))
    cache.values.copy_(-cache.keys)
    return cache


def test_shape_and_reserve():
    cache = filled()
    assert cache.keys.shape == cache.values.shape == (2, 3, 2, BLOCK, 4)
    before = cache.keys.clone()
    cache.reserve(BLOCK - 5)
    assert cache.keys.shape == before.shape
    cache.reserve(BLOCK + 1)
    assert cache.length == 2 * BLOCK
    assert torch.equal(cache.keys[:, :, :, :BLOCK], before)
    assert torch.equal(cache.values[:, :, :, :BLOCK], -before)
    cache.reserve(3)  # never smaller
    assert cache.length == 2 * BLOCK


def test_write_row_leaves_nothing_of_what_the_row_held_and_touches_no_other():
    cache = filled()
    before = cache.keys.clone()
    read = before[:, 1, :, :5] + 1, before[:, 1, :, :5] + 2
    cache.write_slot(2, read)
    assert torch.equal(cache.keys[:, 2, :, :5], read[0])
    assert torch.equal(cache.values[:, 2, :, :5], read[1])
    assert not cache.keys[:, 2, :, 5:].any()
    assert torch.equal(cache.keys[:, :2], before[:, :2])
    assert torch.equal(cache.values[:, :2], -before[:, :2])
    cache.write_slot(0, None)
    assert not cache.keys[:, 0].any()


def test_move_slot_moves_one_slot_of_each_row():
    cache = filled()
    before = cache.keys.clone()
    cache.move_position(torch.tensor([7, 3, 9]), torch.tensor([4, 3, 8]))
    expected = before.clone()
    expected[:, 0, :, 4], expected[:, 2, :, 8] = before[:, 0, :, 7], before[:, 2, :, 9]
    assert torch.equal(cache.keys, expected)
    assert torch.equal(cache.values, -expected)


@pytest.mark.parametrize("slots", [11, BLOCK + 11, 5 * BLOCK])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("num_queries", [1, 5])
def test_packed_attention_under_a_mask(kv_heads, num_queries, slots):
    g = torch.Generator().manual_seed(1)
    query = torch.randn(3, 4, num_queries, 8, generator=g)
    key, value = (torch.randn(3, kv_heads, slots, 8, generator=g) for _ in range(2))
    mask = torch.rand(3, 1, num_queries, slots, generator=g) < 0.5
    mask[0, 0, 0, 5:] = False  # sees nothing of the later blocks
    mask[..., 0] = True
    out, weights = packed_gqa(torch.nn.Module(), query, key, value, additive_mask(mask, query.dtype), scaling=0.37)
    repeat = [t.repeat_interleave(4 // kv_heads, 1) for t in (key, value)]
    expected = scaled_dot_product_attention(query, *repeat, attn_mask=mask, scale=0.37).transpose(1, 2)
    assert_alike(out, expected)
    assert out.shape == (3, num_queries, 4, 8)
    assert weights is None


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_packed_attention_without_a_mask_is_causal(kv_heads):
    g = torch.Generator().manual_seed(2)
    query = torch.randn(2, 4, 6, 8, generator=g)
    key, value = torch.randn(2, kv_heads, 6, 8, generator=g), torch.randn(2, kv_heads, 6, 8, generator=g)
    causal = torch.ones(6, 6).tril().bool().expand(2, 1, 6, 6)
    out, _ = packed_gqa(torch.nn.Module(), query, key, value, None, scaling=0.37)
    expected, _ = packed_gqa(torch.nn.Module(), query, key, value, additive_mask(causal, query.dtype), scaling=0.37)
    assert_alike(out, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_queries", [1, 10, 100])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_longer_view_rounds_a_row_as_its_own_does(dtype, num_queries, device):
    g = torch.Generator().manual_seed(3)
    query = torch.randn(8, 4, num_queries, 16, generator=g).to(device, dtype)
    key, value = (torch.randn(8, 2, 1536, 16, generator=g).to(device, dtype) for _ in range(2))
    views = sorted({view_length(n, torch.device(device)) for n in range(1, 1537, 32)})
    for length in (31, 128, 129, 192, 193, 300, 400, 512, 513, 704, 705, 1000):
        visible = (torch.arange(1536, device=device) < length).expand(8, 1, num_queries, -1)
        mask = additive_mask(visible, dtype)
        own, *longer = (
            packed_gqa(torch.nn.Module(), query, key[:, :, :n], value[:, :, :n], mask[..., :n])[0]
            for n in views
            if n >= length
        )
        assert all(torch.equal(out, own) for out in longer), length


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [2, 8, 24, 32])
@pytest.mark.parametrize("num_queries", [1, 10])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("size", [20, 64])
def test_attention_rounds_a_row_alike_wherever_it_stands(dtype, rows, num_queries, heads, size):
    g = torch.Generator().manual_seed(3)
    query = torch.randn(1, heads, num_queries, size, generator=g).to(dtype).repeat(rows, 1, 1, 1)
    key, value = (torch.randn(1, 1, 4 * BLOCK, size, generator=g).to(dtype).repeat(rows, 1, 1, 1) for _ in range(2))
    visible = (torch.arange(4 * BLOCK) < 3 * BLOCK - 5).expand(rows, 1, num_queries, -1)
    mask = additive_mask(visible, dtype)
    out, _ = packed_gqa(torch.nn.Module(), query, key, value, mask)
    assert torch.equal(out, out[:1].expand_as(out))


@pytest.mark.parametrize("extra", [{"softcap": 30.0}, {"s_aux": torch.zeros(4)}])
def test_attention_that_would_be_computed_wrongly_is_refused(extra):
    tensor = torch.zeros(1, 4, 1, 8)
    with pytest.raises(ValueError, match="not supported"):
        packed_gqa(torch.nn.Module(), tensor, tensor, tensor, None, **extra)
