"""Objectives on hand-made numbers, and batches as they are laid out."""

import itertools
import math

import pytest
import torch

from rgtg.preferences.tokenized import TokenizedPair
from rgtg.training.batch import collate
from rgtg.training.losses import (
    Prefixes,
    loss_of,
    pairwise_loss,
    path_consistency_loss,
    plackett_luce_loss,
    prefix_mask,
    prefix_rewards,
    soft_values,
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


def prefixes(chosen, rejected, mask, chosen_lengths=None, rejected_lengths=None, best_next=None):
    width = [len(chosen[0])] * len(chosen)
    lengths = [torch.tensor(given or width) for given in (chosen_lengths, rejected_lengths)]
    best = None if best_next is None else torch.tensor(best_next)
    return Prefixes(torch.tensor(chosen), torch.tensor(rejected), torch.tensor(mask), *lengths, best)


def loss(name, given):
    loss = loss_of(*name.split("-by-"))
    return (loss.loss_sum(given) / loss.num_terms(given)).item()


def test_partial_loss_averages():
    given = prefixes(
        [[0.1, 0.2, 0.3, 9.0], [1.0, 2.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]],
        [[0.3, 0.1, 0.9, -9.0], [0.0, 3.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0]],
        [[True, True, True, False], [False, True, False, False], [False] * 4],
    )
    first, second = [nll(-0.2), nll(0.1), nll(-0.6)], [nll(-1.0)]
    assert loss("partial", given) == pytest.approx(sum(first + second) / 4, abs=1e-6)
    # A pair of which no prefix counts is no pair.
    assert loss("partial-by-pair", given) == pytest.approx((sum(first) / 3 + sum(second)) / 2, abs=1e-6)


def test_full_loss_is_at_the_end():
    mask = [[False, True], [True, True], [False, False]]
    given = prefixes([[9.0, 1.0], [9.0, 2.0], [9.0, 3.0]], [[0.0, 0.5], [0.0, 3.0], [0.0, 0.0]], mask)
    assert loss("full", given) == pytest.approx((nll(0.5) + nll(-1.0)) / 2)


CHOSEN, REJECTED = [[0.2, 0.7, 0.9, 5.0], [0.5, 8.0, 8.0, 8.0]], [[0.1, 0.4, 0.3, 0.2], [0.6, 0.3, 7.0, 7.0]]
MASK = [[True] * 4, [True, True, False, False]]
LENGTHS = ([3, 1], [4, 2])  # what stands behind a response counts nowhere


def test_rad_is_regression_on_prefixes_that_weighs_later_ones_more():
    given = prefixes(CHOSEN, REJECTED, MASK, *LENGTHS)
    chosen = [(0.8**2 * 1 + 0.3**2 * 2 + 0.1**2 * 3) / 6, 0.5**2]
    rejected = [(0.1**2 * 1 + 0.4**2 * 2 + 0.3**2 * 3 + 0.2**2 * 4) / 10, (0.6**2 * 1 + 0.3**2 * 2) / 3]
    assert loss("rad", given) == pytest.approx(sum(chosen + rejected) / 4)


def test_fudge_is_cross_entropy_of_every_prefix():
    given = prefixes(CHOSEN, REJECTED, MASK, *LENGTHS)
    chosen = [(nll(0.2) + nll(0.7) + nll(0.9)) / 3, nll(0.5)]
    rejected = [(nll(-0.1) + nll(-0.4) + nll(-0.3) + nll(-0.2)) / 4, (nll(-0.6) + nll(-0.3)) / 2]
    assert loss("fudge", given) == pytest.approx(sum(chosen + rejected) / 4)


def test_cd_is_regression_on_prefixes_that_all_weigh_alike():
    given = prefixes(CHOSEN, REJECTED, MASK, *LENGTHS)
    chosen = [(0.8**2 + 0.3**2 + 0.1**2) / 3, 0.5**2]
    rejected = [(0.1**2 + 0.4**2 + 0.3**2 + 0.2**2) / 4, (0.6**2 + 0.3**2) / 2]
    assert loss("cd", given) == pytest.approx(sum(chosen + rejected) / 4)


@pytest.mark.parametrize("name", ["rad", "fudge", "cd", "farma"])
def test_a_pair_that_does_not_count_adds_nothing(name):
    best = [[1.0] * 4] * 2
    without = prefixes(CHOSEN[:1], REJECTED[:1], MASK[:1], [3], [4], best[:1])
    with_it = prefixes(CHOSEN, REJECTED, [MASK[0], [False] * 4], *LENGTHS, best)
    assert loss(name, with_it) == pytest.approx(loss(name, without))


def test_farma_adds_that_a_prefix_is_worth_its_best_continuation():
    given = prefixes(CHOSEN, REJECTED, MASK, *LENGTHS, [[1.0, 1.1, 9.0, 9.0], [9.0] * 4])
    gap = ((0.2 - 1.0) ** 2 + (0.7 - 1.1) ** 2) / 2  # the end of a response has no continuation
    assert loss("farma", given) == pytest.approx(loss("full", given) + 0.5 * gap / 2)


def test_plackett_luce_is_the_probability_of_drawing_in_that_order():
    ranked = torch.tensor([[2.0, 0.5, -1.0], [0.0, 3.0, 1.0]], dtype=torch.float64)
    for row, found in zip(ranked.exp().tolist(), plackett_luce_loss(ranked).tolist(), strict=True):
        assert found == pytest.approx(-math.log(row[0] / sum(row) * row[1] / sum(row[1:])))
    orders = torch.tensor(list(itertools.permutations([2.0, 0.5, -1.0])), dtype=torch.float64)
    assert (-plackett_luce_loss(orders)).exp().sum().item() == pytest.approx(1.0)
    pair = ranked[:, :2]
    torch.testing.assert_close(plackett_luce_loss(pair), pairwise_loss(pair[:, 0], pair[:, 1]))


class World:
    """Texts of three tokens of {0, 1, 2}, a language model over them and a reward of whole texts, all enumerable."""

    def __init__(self):
        g = torch.Generator().manual_seed(5)
        self.logits, self.rewards = torch.randn(3, 3, 3, generator=g).double(), torch.randn(27, generator=g).double()

    def logprobs(self, prefix):
        return self.logits[len(prefix), prefix[-1] if prefix else 0].log_softmax(-1)

    def outcome(self, text):
        return self.rewards[text[0] * 9 + text[1] * 3 + text[2]].item()

    def value(self, prefix, backup):
        """Of a prefix, from the ends backwards: `backup` takes values and log-probabilities of the next tokens."""
        if len(prefix) == 3:
            return self.outcome(prefix)
        values = torch.tensor([self.value((*prefix, v), backup) for v in range(3)], dtype=torch.float64)
        return backup(values, self.logprobs(prefix)).item()


TEXTS = list(itertools.product(range(3), repeat=3))


def test_path_consistency_is_zero_at_the_soft_values_that_tilt_the_language_model_rightly():
    world = World()

    def soft(prefix):
        return world.value(prefix, soft_values)

    values = torch.tensor([[soft(y[:i]) for i in range(3)] for y in TEXTS], dtype=torch.float64)
    taken = torch.tensor([[soft(y[: i + 1]) for i in range(3)] for y in TEXTS], dtype=torch.float64)
    outcome = torch.tensor([world.outcome(y) for y in TEXTS], dtype=torch.float64)
    mask = torch.ones(27, 3, dtype=torch.bool)
    assert path_consistency_loss(values, taken, outcome, mask).item() < 1e-20
    assert path_consistency_loss(values, taken + 0.1, outcome, mask).item() == pytest.approx(0.01 + 0.04 + 0.09)
    # Token by token, p(v) exp(Q(v)) normalized draws exactly the texts of p(y) exp(r(y)).
    log_p = torch.tensor([sum(world.logprobs(y[:i])[y[i]] for i in range(3)) for y in TEXTS], dtype=torch.float64)
    torch.testing.assert_close(log_p + (taken - values).sum(-1), (log_p + outcome).log_softmax(-1))
