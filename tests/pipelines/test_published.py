"""The published loops choose what the product chooses: what is measured against each other does the same work."""

import pytest
import torch

from pipelines.benchmarks.published import reordered, rescoring
from rgtg.decoding.decoder import Decoder


@pytest.mark.parametrize("loop", [reordered, rescoring])
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_the_same_tokens(make_language, make_reward, plain, tokenizer_of, loop, arch):
    language, reward = make_language(arch=arch, eos_scale=0.0), make_reward(arch=arch)
    prompts = ["hello", "world", "x and y"[:5]]
    ids = torch.tensor([tokenizer_of(language)(prompt).input_ids for prompt in prompts])
    found = loop(plain(language), plain(reward), ids, 1.5, 6, 10)
    decoder = Decoder.load(language, reward, "pargs-greedy", beta=1.5, k=6, slots=3, device="cpu")
    expected = [row[0].token_ids for row in decoder.generate(prompts, max_new_tokens=10)]
    assert found.tolist() == expected
