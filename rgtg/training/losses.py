"""Objectives of reward models as pure functions: shapes in, scalar out.

Shapes: B pairs, T prefix lengths (the longest response of the batch), L tokens of a padded sequence.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def prefix_rewards(rewards: Tensor, prompt_lengths: Tensor, response_lengths: Tensor, num_prefixes: int) -> Tensor:
    """r(x, y[:i]) for i = 1..T as (B, T), from the rewards of all positions (B, L).

    Past the end of a response its final reward holds.
    """
    prefix = torch.arange(1, num_prefixes + 1, device=rewards.device)
    held = torch.minimum(prefix, response_lengths[:, None])
    return rewards.gather(1, prompt_lengths[:, None] + held - 1)


def prefix_mask(
    chosen_lengths: Tensor, rejected_lengths: Tensor, common: Tensor, num_prefixes: int, min_prefix: int = 1
) -> Tensor:
    """Which prefix pairs (B, T) count, as bool: up to the longer response, from `min_prefix` tokens on.

    The first `common` (B,) prefixes have identical tokens on both sides. They carry no information and are left out.
    """
    prefix = torch.arange(1, num_prefixes + 1, device=common.device)
    longer = torch.maximum(chosen_lengths, rejected_lengths)[:, None]
    return (prefix <= longer) & (prefix > common[:, None]) & (prefix >= min_prefix)


def pairwise_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Bradley-Terry, -log sigmoid(chosen - rejected), elementwise (Ouyang et al. 2022, equation 1)."""
    return -logsigmoid(chosen - rejected)


def partial_loss_sum(chosen: Tensor, rejected: Tensor, mask: Tensor, average: str) -> Tensor:
    """The partial-sequence objective (PARGS, arXiv 2406.07780), to be divided by `num_terms`.

    chosen, rejected, mask: (B, T). `prefix` averages over all prefixes of all pairs, as published, so that long pairs
    weigh more. `pair` averages over the prefixes of a pair first.
    """
    losses = pairwise_loss(chosen, rejected) * mask
    return losses.sum() if average == "prefix" else (losses.sum(-1) / mask.sum(-1).clamp(min=1)).sum()


def full_loss_sum(chosen: Tensor, rejected: Tensor, mask: Tensor) -> Tensor:
    """The full-sequence objective, to be divided by `num_terms`: Bradley-Terry at the last of (B, T) prefixes.

    A pair of which no prefix counts is none.
    """
    return (pairwise_loss(chosen[:, -1], rejected[:, -1]) * mask.any(-1)).sum()


def num_terms(mask: Tensor, objective: str, average: str) -> Tensor:
    """What the sum of a loss is divided by, as a float scalar.

    It stands apart from the sums because a batch may be spread over workers and micro-batches: the mean is over all.
    """
    return (mask if objective == "partial" and average == "prefix" else mask.any(-1)).sum().float()
