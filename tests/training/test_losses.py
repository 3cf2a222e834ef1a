"""Objectives on hand-made numbers, and batches as they are laid out."""

import math

import pytest
import torch

from rgtg.preferences.tokenized import TokenizedPair
from rgtg.training.batch import collate
from rgtg.training.losses import (
    full_loss_sum,
    num_terms,
    pairwise_loss,
    partial_loss_sum,
    prefix_mask,
    prefix_rewards,
)

EOS = 2
PAIRS = [
    TokenizedPair([1, 10], [20, 21, EOS], [20, 22, 23, 24, EOS], 1),
    TokenizedPair([1, 10, 11, 12], [30, EOS], [31], 0),
]


def nll(difference):
    return math.log1p(math.exp(-difference))


def test_collate_puts_the_rejected_responses_below_the_chosen_ones():
    batch = collate(PAIRS, "hold", EOS)
    rows = [row.tolist() for row in batch.input_ids]
    assert [row[:n] for row, n in zip(rows, (5, 6, 7, 5), strict=True)] == [
        [1, 10, 20, 21, EOS],
        [1, 10, 11, 12, 30, EOS],
        [1, 10, 20, 22, 23, 24, EOS],
        [1, 10, 11, 12, 31],
    ]
    assert batch.input_ids.shape == (4, 7)
    assert batch.prompt_lengths.tolist() == [2, 4]
    assert batch.chosen_lengths.tolist() == [3, 2]
    assert batch.rejected_lengths.tolist() == [5, 1]
    assert batch.common.tolist() == [1, 0]
    assert batch.num_prefixes == 5


def test_collate_with_eos_pads_the_shorter_response_of_each_pair():
    batch = collate(PAIRS, "eos", EOS)
    assert batch.chosen_lengths.tolist() == batch.rejected_lengths.tolist() == [5, 2]
    assert batch.input_ids[0].tolist() == [1, 10, 20, 21, EOS, EOS, EOS]
    assert batch.input_ids[3, :6].tolist() == [1, 10, 11, 12, 31, EOS]
    # Without an EOS there is nothing to pad with.
    assert collate(PAIRS, "eos", None).chosen_lengths.tolist() == [3, 2]


def test_prefix_rewards_begin_behind_the_prompt_and_hold_past_the_end():
    rewards = torch.arange(14.0).view(2, 7)
    picked = prefix_rewards(rewards, torch.tensor([2, 4]), torch.tensor([3, 1]), 4)
    assert picked.tolist() == [[2, 3, 4, 4], [11, 11, 11, 11]]


def test_prefix_mask():
    arguments = torch.tensor([3, 2, 4]), torch.tensor([5, 1, 4]), torch.tensor([1, 0, 3]), 6
    x = True
    assert prefix_mask(*arguments).tolist() == [
        [False, x, x, x, x, False],  # the first is identical on both sides, the sixth behind the longer response
        [x, x, False, False, False, False],
        [False, False, False, x, False, False],
    ]
    assert prefix_mask(*arguments, min_prefix=3).tolist() == [
        [False, False, x, x, x, False],
        [False] * 6,
        [False, False, False, x, False, False],
    ]


def test_pairwise_loss_is_bradley_terry_and_stable():
    chosen, rejected = torch.tensor([1.0, -2.0, 500.0, -500.0]), torch.tensor([0.5, 1.0, -500.0, 500.0])
    losses = pairwise_loss(chosen, rejected).tolist()
    assert losses[:2] == pytest.approx([nll(0.5), nll(-3.0)])
    assert losses[2:] == [0.0, 1000.0]


def test_partial_loss_averages():
    chosen = torch.tensor([[0.1, 0.2, 0.3, 9.0], [1.0, 2.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]])
    rejected = torch.tensor([[0.3, 0.1, 0.9, -9.0], [0.0, 3.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0]])
    mask = torch.tensor([[True, True, True, False], [False, True, False, False], [False] * 4])
    first, second = [nll(-0.2), nll(0.1), nll(-0.6)], [nll(-1.0)]
    by_prefix = partial_loss_sum(chosen, rejected, mask, "prefix") / num_terms(mask, "partial", "prefix")
    assert by_prefix.item() == pytest.approx(sum(first + second) / 4, abs=1e-6)
    # A pair of which no prefix counts is no pair.
    by_pair = partial_loss_sum(chosen, rejected, mask, "pair") / num_terms(mask, "partial", "pair")
    assert by_pair.item() == pytest.approx((sum(first) / 3 + sum(second)) / 2, abs=1e-6)


def test_full_loss_is_at_the_end():
    chosen, rejected = (
        torch.tensor([[9.0, 1.0], [9.0, 2.0], [9.0, 3.0]]),
        torch.tensor([[0.0, 0.5], [0.0, 3.0], [0.0, 0.0]]),
    )
    mask = torch.tensor([[False, True], [True, True], [False, False]])
    for average in ("prefix", "pair"):
        loss = full_loss_sum(chosen, rejected, mask) / num_terms(mask, "full", average)
        assert loss.item() == pytest.approx((nll(0.5) + nll(-1.0)) / 2)
