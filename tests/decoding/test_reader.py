"""Prompts in the rows of a cache: read in chunks, each once, and bit by bit the same wherever they came from."""

import pytest
import torch

from rgtg.decoding.decoder import Decoder
from rgtg.decoding.reader import CHUNK, Prompts
from rgtg.models.cache import ATTENTION, SlotCache

LONG = {"max_position_embeddings": 1024}
SYSTEM = [3 + i * i % 200 for i in range(2 * CHUNK + 10)]  # two whole chunks, and a part of one
PROMPTS = [SYSTEM + [9, 8, 7], SYSTEM + [5], SYSTEM[:CHUNK] + [4] * 40, [6] * 20, SYSTEM + [9, 8, 7]]


@pytest.fixture(scope="module")
def long_language_dir(make_language):
    return make_language(**LONG)


@pytest.fixture
def model(plain, long_language_dir):
    model = plain(long_language_dir)
    model.set_attn_implementation(ATTENTION)
    return model.base_model


def prompts_of(model, rows=8):
    """The rows of a new cache, and the number of tokens of each forward."""
    prompts = Prompts(model, SlotCache(model.config, rows, dtype=torch.float32, device=torch.device("cpu")))
    lengths = []
    model.register_forward_pre_hook(
        lambda _, args, given: lengths.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    return prompts, lengths


def content(prompts, row, length):
    return prompts.cache.keys[:, row, :, :length], prompts.cache.values[:, row, :, :length]


@torch.inference_mode()
def test_chunks_are_what_one_forward_gives(model, plain, long_language_dir):
    prompts, lengths = prompts_of(model)
    prompts.read(3, SYSTEM)
    assert lengths == [CHUNK, CHUNK, 32]
    whole = plain(long_language_dir).base_model(input_ids=torch.tensor([SYSTEM]), use_cache=True).past_key_values
    keys, values = content(prompts, 3, len(SYSTEM))
    for i, layer in enumerate(whole.layers):
        torch.testing.assert_close(keys[i], layer.keys[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(values[i], layer.values[0], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_common_beginning_is_read_once_and_bit_by_bit_what_reading_it_would_give(model):
    prompts, lengths = prompts_of(model)
    for row, prompt in enumerate(PROMPTS):
        prompts.read(row, prompt)
    # The first one whole; a common beginning of two chunks, then of one; another prompt; and the first one again.
    assert lengths == [CHUNK, CHUNK, 32, 32, 64, 32]
    for row, prompt in enumerate(PROMPTS):
        alone, _ = prompts_of(model)
        alone.read(0, prompt)
        for found, expected in zip(content(prompts, row, len(prompt)), content(alone, 0, len(prompt)), strict=True):
            assert torch.equal(found, expected)
    # A longer prompt was in this row: nothing of it is left behind the new one.
    prompts.read(0, PROMPTS[3])
    assert not prompts.cache.keys[:, 0, :, 32:].any()


@torch.inference_mode()
def test_a_row_that_was_written_over_is_no_source(model):
    prompts, lengths = prompts_of(model, rows=2)
    prompts.read(0, SYSTEM)
    prompts.forget([0])
    lengths.clear()
    prompts.read(1, SYSTEM)
    assert lengths == [CHUNK, CHUNK, 32]


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
