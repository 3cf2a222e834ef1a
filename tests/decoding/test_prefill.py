"""Prompts: read several at a time, in chunks, each once, and bit by bit the same whatever came before or along."""

import random

import pytest
import torch

from rgtg.decoding.decoder import Decoder
from rgtg.decoding.prefill import CHUNK, HELD, PrefixCache
from rgtg.models.attention import ATTENTION
from rgtg.models.packed import pack
from tests.tolerance import assert_alike

LONG = {"max_position_embeddings": 1024}
SYSTEM = [3 + i * i % 200 for i in range(2 * CHUNK + 10)]  # two whole chunks, and a part of one
SOME = [[3 + (i * j) % 250 for j in range(1, n + 1)] for i, n in enumerate([5, 32, 20, 33, 1, 64, 90, 31, 50, 128])]


@pytest.fixture(scope="module")
def long_language_dir(make_language):
    return make_language(**LONG)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(plain, long_language_dir, request):
    model = plain(long_language_dir)
    model.set_attn_implementation(ATTENTION)
    model.to(request.param)
    pack(model)
    return model.base_model


def prompts_of(model, rows=8):
    """An empty shelf, and the shape of each forward that fills it."""
    shapes = []
    model.register_forward_pre_hook(
        lambda _, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    return PrefixCache(model, rows), shapes


def same(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@torch.inference_mode()
@pytest.mark.parametrize("prompt", [SYSTEM, SOME[2], SOME[9]])
def test_keys_and_values_are_those_of_one_plain_forward(plain, long_language_dir, prompt):
    ours, theirs = plain(long_language_dir), plain(long_language_dir)
    ours.set_attn_implementation(ATTENTION)
    keys, values = PrefixCache(ours.base_model, 8).get(prompt, SOME)
    whole = theirs.base_model(input_ids=torch.tensor([prompt]), use_cache=True).past_key_values
    assert keys.shape[2] == len(prompt)
    for i, layer in enumerate(whole.layers):
        assert_alike(keys[i], layer.keys[0])
        assert_alike(values[i], layer.values[0])


@torch.inference_mode()
def test_coming_prompts_of_the_same_shape_are_read_along(model):
    prompts, shapes = prompts_of(model)
    prompts.get(SOME[0], SOME[1:])
    for i in (1, 2, 3, 4, 5, 7, 8):
        prompts.get(SOME[i])
    assert shapes == [(8, 64)], "eight prompts of at most 64 tokens"
    prompts.get(SOME[6])
    assert shapes[1:] == [(4, 128)]
    few, shapes = prompts_of(model, rows=2)
    few.get(SOME[0], SOME[1:])
    assert shapes[-1] == (2, 64), "no more than the rows that there are"


@torch.inference_mode()
def test_company_and_order_change_no_bit(model):
    expected = [PrefixCache(model, 8).get(prompt) for prompt in SOME]
    for seed in range(5):
        order = random.Random(seed).sample(range(len(SOME)), len(SOME))
        prompts = PrefixCache(model, 8)
        for at, i in enumerate(order):
            assert same(prompts.get(SOME[i], [SOME[j] for j in order[at + 1 :]]), expected[i])


@torch.inference_mode()
def test_a_common_beginning_is_read_once_and_bit_by_bit_what_reading_it_would_give(model):
    prompts, shapes = prompts_of(model)
    many = [SYSTEM + [9, 8, 7], SYSTEM + [5], SYSTEM[:CHUNK] + [4] * 40, [6] * 200, SYSTEM + [9, 8, 7], SYSTEM + [5]]
    found = [prompts.get(prompt) for prompt in many]
    # The first one whole; a common beginning of two chunks, then of one; another prompt; and two once more.
    assert [length for _, length in shapes] == [CHUNK, CHUNK, 32, 32, 64, 224]
    for read, prompt in zip(found, many, strict=True):
        assert same(read, PrefixCache(model, 8).get(prompt))
    # Where the held one ends with a chunk, or the new one does.
    assert same(prompts.get(SYSTEM[: 2 * CHUNK]), PrefixCache(model, 8).get(SYSTEM[: 2 * CHUNK]))
    assert same(prompts.get(SYSTEM), PrefixCache(model, 8).get(SYSTEM))


@torch.inference_mode()
def test_what_is_held_is_bounded_and_the_last_used_stays(model):
    prompts, shapes = prompts_of(model)
    first = [9] * 200
    prompts.get(first)
    for i in range(60):
        prompts.get([10 + i] * 100)
        prompts.get(first)
    assert shapes.count((1, 224)) == 1, "in use all the time"
    assert sum(map(len, prompts.held)) <= HELD + 200
    prompts.get([10] * 100)
    assert shapes[-1] == (4, 128), "read again: it had been left behind"


@pytest.mark.parametrize("method", ["pargs", "pargs-best-of-n", "unguided"])
def test_completions_behind_a_system_prompt_are_the_same_in_any_company(long_language_dir, make_reward, method):
    system = "You answer in the words of a sailor. " * 16
    texts = [system + "hello", system + "x", "x", system[:300] + "!", system + "hello you"]
    reward = make_reward(**LONG)
    decoder = Decoder.load(long_language_dir, reward, method, slots=8)
    options = {"samples": 2, "max_new_tokens": 6}
    together = decoder.generate(texts, **options)
    for text, completions in zip(texts, together, strict=True):
        alone = Decoder.load(long_language_dir, reward, method, slots=8)
        assert alone.generate([text], **options) == [completions]
