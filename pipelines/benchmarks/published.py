"""The loops that papers published, written plainly, as baselines for speed. No job uses them.

Both complete a batch of prompts of equal length by the token rule, greedily so that no noise is in the way, and return
the token ids (B, T) of the completions. Models are plain transformers: a causal language model and a classifier.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


@torch.inference_mode()
def rescoring(language: Any, reward: Any, prompts: Tensor, beta: float, k: int, num_tokens: int) -> Tensor:
    """The loop published with PARGS (arXiv 2406.07780), there for one prompt at a time: the reward model reads each
    candidate's whole text, one after the other and without a cache. The language model has a cache.
    """
    text, cache, step = prompts, DynamicCache(), prompts
    for _ in range(num_tokens):
        logprobs, tokens = _candidates(language(step, past_key_values=cache, use_cache=True).logits[:, -1], k)
        texts = [torch.cat([text, candidate[:, None]], dim=1) for candidate in tokens.T]
        rewards = torch.stack([_reward(reward, ids, None) for ids in texts], dim=1)
        step = _best(logprobs, rewards, tokens, beta)[1]
        text = torch.cat([text, step], dim=1)
    return text[:, prompts.shape[1] :]


@torch.inference_mode()
def reordered(language: Any, reward: Any, prompts: Tensor, beta: float, k: int, num_tokens: int) -> Tensor:
    """Each candidate has a row of the reward model's cache; each step copies the chosen row over the others."""
    rows, device = len(prompts), prompts.device
    text, cache, step = prompts, DynamicCache(), prompts
    reward_cache: Any = DynamicCache()
    reward.base_model(prompts, past_key_values=reward_cache, use_cache=True)
    reward_cache.batch_repeat_interleave(k)
    for _ in range(num_tokens):
        logprobs, tokens = _candidates(language(step, past_key_values=cache, use_cache=True).logits[:, -1], k)
        rewards = _reward(reward, tokens.reshape(-1, 1), reward_cache).view(-1, k)
        index, step = _best(logprobs, rewards, tokens, beta)
        chosen = torch.arange(rows, device=device) * k + index[:, 0]
        reward_cache.reorder_cache(chosen.repeat_interleave(k))
        text = torch.cat([text, step], dim=1)
    return text[:, prompts.shape[1] :]


def _candidates(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return logits.float().log_softmax(-1).topk(k)


def _reward(model: Any, ids: Tensor, cache: DynamicCache | None) -> Tensor:
    hidden = model.base_model(ids, past_key_values=cache, use_cache=cache is not None).last_hidden_state
    return model.score(hidden[:, -1]).float()[:, 0]


def _best(logprobs: Tensor, rewards: Tensor, tokens: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    index = (logprobs + beta * rewards).argmax(-1, keepdim=True)
    return index, tokens.gather(1, index)
