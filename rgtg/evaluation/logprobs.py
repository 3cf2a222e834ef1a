"""What a language model thinks of given completions."""

from datetime import date

import torch

from rgtg.chat import Prompt, encode_prompt
from rgtg.models.language import LanguageModel
from rgtg.models.shapes import right_padded

BATCH = 16


@torch.inference_mode()
def logprobs(
    model: LanguageModel, prompts: list[Prompt], completions: list[list[int]], day: date | None = None
) -> list[float]:
    """log p(y | x) of completions, as token ids, in nats. `day` is what a chat template writes as the date."""
    prompt_ids = [encode_prompt(model.tokenizer, prompt, day) for prompt in prompts]
    totals = [0.0] * len(completions)
    order = sorted(range(len(totals)), key=lambda i: len(prompt_ids[i]) + len(completions[i]))  # little padding
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        ids = right_padded([prompt_ids[row] + completions[row] for row in rows]).to(model.device)
        every = model.model(ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        taken = every.gather(-1, ids[:, 1:, None])[..., 0].double()
        for i, row in enumerate(rows):
            begin = len(prompt_ids[row]) - 1
            totals[row] = float(taken[i, begin : begin + len(completions[row])].sum())
    return totals
