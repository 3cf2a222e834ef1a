"""Objectives of reward models as pure functions: tensors in, a scalar out.

Shapes: B pairs, T prefix lengths (the longest response of the batch), L tokens of a padded sequence.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rgtg.methods import OBJECTIVES


def prefix_rewards(rewards: Tensor, prompt_lengths: Tensor, response_lengths: Tensor, num_prefixes: int) -> Tensor:
    """r(x, y[:i]) for i = 1..T as (B, T), from the rewards of all positions (B, L).

    Past the end of a response its final reward is repeated.
    """
    prefix = torch.arange(1, num_prefixes + 1, device=rewards.device)
    held = torch.minimum(prefix, response_lengths[:, None])
    return rewards.gather(1, prompt_lengths[:, None] + held - 1)


def prefix_mask(
    chosen_lengths: Tensor, rejected_lengths: Tensor, common: Tensor, num_prefixes: int, min_prefix: int = 1
) -> Tensor:
    """Which prefix pairs (B, T) count, as bool: up to the longer response, from `min_prefix` tokens on.

    The first `common` (B,) prefixes have identical tokens on both sides: they carry no information and do not count.
    """
    prefix = torch.arange(1, num_prefixes + 1, device=common.device)
    longer = torch.maximum(chosen_lengths, rejected_lengths)[:, None]
    return (prefix <= longer) & (prefix > common[:, None]) & (prefix >= min_prefix)


def pairwise_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Bradley-Terry, -log sigmoid(chosen - rejected), elementwise (Ouyang et al. 2022, equation 1)."""
    return -logsigmoid(chosen - rejected)


class Prefixes(NamedTuple):
    """Rewards and masks of all prefixes of B pairs, (B, T) each."""

    chosen: Tensor
    rejected: Tensor
    mask: Tensor  # the prefix pairs that count, by `prefix_mask`; a pair without any does not count
    chosen_lengths: Tensor  # (B,), in tokens
    rejected_lengths: Tensor
    best_next: Tensor | None = None  # of each chosen prefix: the largest reward of its continuations by one token

    @property
    def pairs(self) -> Tensor:
        """The pairs that count, (B,) bool."""
        return self.mask.any(-1)


def partial_loss_sum(p: Prefixes) -> Tensor:
    """Bradley-Terry on all prefix pairs, averaged over all of them, so that long pairs weigh more.

    As published (PARGS, arXiv 2406.07780).
    """
    return (pairwise_loss(p.chosen, p.rejected) * p.mask).sum()


def partial_by_pair_loss_sum(p: Prefixes) -> Tensor:
    """Bradley-Terry on all prefix pairs, averaged first within each pair."""
    return ((pairwise_loss(p.chosen, p.rejected) * p.mask).sum(-1) / p.mask.sum(-1).clamp(min=1)).sum()


def full_loss_sum(p: Prefixes) -> Tensor:
    """Bradley-Terry at the last prefix: on whole responses."""
    return (pairwise_loss(p.chosen[:, -1], p.rejected[:, -1]) * p.pairs).sum()


def rad_loss_sum(p: Prefixes) -> Tensor:
    """Weighted regression on prefixes: sum over t of 2t / (n (n + 1)) (r_t - label)^2, of both responses of a pair.

    The label is 1 for chosen and 0 for rejected (RAD, arXiv 2310.09520: the weights of a text sum to 1).
    """
    total = p.chosen.new_zeros(())
    for rewards, lengths, label in ((p.chosen, p.chosen_lengths, 1.0), (p.rejected, p.rejected_lengths, 0.0)):
        prefix = torch.arange(1, rewards.shape[1] + 1, device=rewards.device)
        n = lengths[:, None]
        weights = torch.where(prefix <= n, 2 * prefix / (n * (n + 1)), 0.0)
        total = total + ((rewards - label).square() * weights * p.pairs[:, None]).sum()
    return total / 2


def fudge_loss_sum(p: Prefixes) -> Tensor:
    """Binary cross-entropy of every prefix with the label of its text, averaged over the prefixes of a response.

    Chosen is the attribute, rejected its absence, and the reward the logit (FUDGE, arXiv 2104.05218).
    """
    total = p.chosen.new_zeros(())
    for rewards, lengths, sign in ((p.chosen, p.chosen_lengths, 1.0), (p.rejected, p.rejected_lengths, -1.0)):
        prefix = torch.arange(1, rewards.shape[1] + 1, device=rewards.device)
        inside = (prefix <= lengths[:, None]) & p.pairs[:, None]
        total = total - (logsigmoid(sign * rewards) * inside / lengths[:, None]).sum()
    return total / 2


def cd_loss_sum(p: Prefixes) -> Tensor:
    """Regression of every prefix on the outcome of its text, averaged over the prefixes of a response.

    The outcome is 1 for chosen and 0 for rejected (CD-FUDGE, arXiv 2310.17022, whose outcomes are rewards of samples
    of the language model).
    """
    total = p.chosen.new_zeros(())
    for rewards, lengths, label in ((p.chosen, p.chosen_lengths, 1.0), (p.rejected, p.rejected_lengths, 0.0)):
        prefix = torch.arange(1, rewards.shape[1] + 1, device=rewards.device)
        inside = (prefix <= lengths[:, None]) & p.pairs[:, None]
        total = total + ((rewards - label).square() * inside / lengths[:, None]).sum()
    return total / 2


def farma_loss_sum(p: Prefixes) -> Tensor:
    """Bradley-Terry on whole responses, plus the Bellman error of the chosen one's prefixes.

    The error is the squared difference of V(y[:i]) and max over v of V(y[:i] v), with the gradient through both,
    averaged over prefixes (FaRMA, arXiv 2502.04517; the published code alternates both terms, here they are added).
    """
    assert p.best_next is not None
    prefix = torch.arange(1, p.chosen.shape[1] + 1, device=p.chosen.device)
    inside = (prefix < p.chosen_lengths[:, None]) & p.pairs[:, None]
    gaps = (p.chosen - p.best_next).square() * inside
    return full_loss_sum(p) + 0.5 * (gaps.sum(-1) / inside.sum(-1).clamp(min=1)).sum()


def num_prefixes(p: Prefixes) -> Tensor:
    return p.mask.sum().float()


def num_pairs(p: Prefixes) -> Tensor:
    return p.pairs.sum().float()


class Loss(NamedTuple):
    """A loss is `loss_sum` divided by `num_terms`, float scalars.

    Both are summed separately over workers and micro-batches: the mean is over the whole batch.
    """

    loss_sum: Callable[[Prefixes], Tensor]
    num_terms: Callable[[Prefixes], Tensor]


def loss_of(objective: str, average: str = "prefix") -> Loss:
    """The loss of a row of OBJECTIVES; `average="pair"` averages the partial loss within each pair first."""
    if objective == "partial" and average == "pair":
        return Loss(partial_by_pair_loss_sum, num_pairs)
    row = OBJECTIVES[objective]
    return Loss(globals()[row.loss], num_prefixes if row.mean_over == "prefixes" else num_pairs)


# What follows has no caller yet. Ranked lists (`train_reward.objective=plackett-luce`) will call the first one; soft
# Q-learning of a token-level head, as a guide and as an objective of policies, the other two.


def plackett_luce_loss(ranked: Tensor) -> Tensor:
    """Negative log-likelihood (B,) of rankings, from the rewards (B, K) of K texts, the best first.

    -sum over k of log(exp r_k / sum over j >= k of exp r_j) (Zhu et al. 2023, arXiv 2301.11270).
    """
    remaining = ranked.flip(-1).logcumsumexp(-1).flip(-1)
    return (remaining - ranked).sum(-1)


def path_consistency_loss(values: Tensor, taken: Tensor, outcome: Tensor, mask: Tensor) -> Tensor:
    """Multi-step path consistency of soft Q-learning, with the language model as the prior (arXiv 2106.07704).

    For every t the sum over s >= t of Q(s, y_s) - V(s) should be outcome - V(t), where V is the log-mean-exp of Q
    under the language model (`soft_values`). values V(s), taken Q(s, y_s) and mask are (B, T), outcome (B,). The
    target takes no gradient. Summed over tokens, averaged over B.
    """
    advantages = ((taken - values) * mask).flip(-1).cumsum(-1).flip(-1)
    return ((advantages - (outcome[:, None] - values.detach())).square() * mask).sum(-1).mean()


def soft_values(q: Tensor, logprobs: Tensor) -> Tensor:
    """The KL-regularized value of a prefix, log of the mean of exp Q under the language model: (..., V) to (...)."""
    return (q + logprobs).logsumexp(-1)
