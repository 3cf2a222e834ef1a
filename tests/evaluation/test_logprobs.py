import pytest
import torch

from rgtg.evaluation.logprobs import logprobs
from rgtg.models.language import LanguageModel
from tests.tolerance import alike

PROMPTS = ["hello", "", "a longer prompt"]
COMPLETIONS = [[40, 50, 2], [60], [70, 71, 72, 73]]


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_log_probabilities_are_those_of_every_text_alone(make_language, plain, tokenizer_of, arch):
    place = make_language(arch=arch, seed=3)
    found = logprobs(LanguageModel.load(place, device="cpu"), PROMPTS, COMPLETIONS)
    for prompt, completion, value in zip(PROMPTS, COMPLETIONS, found, strict=True):
        ids = tokenizer_of(place)(prompt).input_ids
        total = 0.0
        for token in completion:
            with torch.no_grad():
                total += plain(place)(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item()
            ids.append(token)
        assert value == alike(total)
