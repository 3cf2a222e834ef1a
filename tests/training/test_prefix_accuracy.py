"""Accuracy by prefix length, counted by hand."""

import pytest
import torch

from rgtg.training.prefix_accuracy import FRACTIONS, LENGTHS, PrefixAccuracy


def accuracy_of(differences, longer, common):
    """By the differences chosen - rejected of each pair, of equal length T."""
    accuracy = PrefixAccuracy(("final",))
    add(accuracy, differences, longer, common)
    return accuracy.summary()


def add(accuracy, differences, longer, common):
    difference = torch.tensor(differences, dtype=torch.float)
    base = torch.linspace(-3, 3, difference.numel()).view_as(difference)
    lengths = torch.tensor(longer)
    accuracy.add(base + difference, base, lengths, lengths, torch.tensor(common))


def test_hand_made_pairs():
    summary = accuracy_of(
        [
            [1, -1, 1, 1, 1, 0, 0, 0, 0, 0],  # five tokens, all prefixes differ
            [9, 9, -1, 1, 1, 1, 1, 1, 1, 0],  # ten tokens, the first two in common; a tie at the end
        ],
        longer=[5, 10],
        common=[0, 2],
    )
    assert summary["by_length"] == {
        "1": 1.0,  # the first pair alone
        "2": 0.0,
        "5": 1.0,  # both
        "10": 0.5,  # the second alone, tied
    }
    assert summary["by_fraction"] == {
        "0.1": 1.0,  # lengths 1 and 1; the second is in common
        "0.25": 0.0,  # 2 and 3
        "0.5": 1.0,  # 3 and 5
        "0.75": 1.0,  # 4 and 8
        "1.0": 0.75,  # 5 and 10
    }
    assert summary["pairs"] == {"full": 2}


def test_a_tie_is_half():
    summary = accuracy_of([[0.0] * 4], [4], [0])
    assert set(summary["by_length"].values()) | set(summary["by_fraction"].values()) == {0.5}


def test_lengths_without_a_pair_are_left_out():
    summary = accuracy_of([[1.0] * 3, [1.0] * 3], [3, 2], [2, 1])
    assert summary["by_length"] == {"2": 1.0}
    assert summary["by_fraction"] == {"0.75": 1.0, "1.0": 1.0}
    nothing = PrefixAccuracy().summary()
    assert nothing == {"by_length": {}, "by_fraction": {}, "by_score": {}, "score": "final", "pairs": {"full": 0}}


@pytest.mark.parametrize("longer", [1, 3, 10, 20, 30, 40, 70, 100, 1000, 1280])
def test_fractions_round_up_to_whole_tokens(longer):
    """A reward that is right only from the exact prefix on: one token less and the fraction would count as wrong."""
    for fraction in FRACTIONS:
        exact = -(-longer * int(fraction * 100) // 100)
        for first_right, expected in ((exact, 1.0), (exact + 1, 0.0)):
            differences = [[1.0 if i >= first_right else -1.0 for i in range(1, longer + 2)]]
            assert accuracy_of(differences, [longer], [0])["by_fraction"][str(fraction)] == expected


def test_pairs_add_up_over_batches_of_different_widths():
    accuracy = PrefixAccuracy(("final",))
    add(accuracy, [[1.0] * 2, [-1.0] * 2], [2, 2], [0, 0])
    add(accuracy, [[1.0] * 25, [1.0] * 25], [25, 20], [0, 0])
    summary = accuracy.summary()
    assert summary["by_length"] == {"1": 0.75, "2": 0.75, "5": 1.0, "10": 1.0, "20": 1.0}
    assert summary["pairs"] == {"full": 4}
    assert max(LENGTHS) > 25  # no longer one is reported


def test_long_responses_count_in_every_length():
    summary = accuracy_of([[1.0] * 1300], [1300], [0])
    assert [int(n) for n in summary["by_length"]] == list(LENGTHS)


def test_the_score_that_ranks_most_pairs_rightly_is_kept():
    """Chosen is better in all but its last token, which deceives `final` alone."""
    accuracy = PrefixAccuracy()
    chosen, rejected = torch.tensor([[1.0] * 9 + [-1.0]]), torch.zeros(1, 10)
    ten = torch.tensor([10])
    accuracy.add(chosen, rejected, ten, ten, torch.tensor([0]))
    summary = accuracy.summary()
    assert summary["by_score"] == {"final": 0.0, "mean": 1.0, "linear": 1.0, "last-8": 1.0}
    assert summary["score"] == "linear", "the steadiest of equals"
    assert summary["by_fraction"]["1.0"] == 1.0
    assert accuracy.summary("final")["by_fraction"]["1.0"] == 0.0


@pytest.mark.parametrize(
    ("right", "n", "kept"),
    [
        ({"final": 0.615, "mean": 0.678, "linear": 0.676, "last-8": 0.686}, 1000, "linear"),  # all but final: as good
        ({"final": 0.687, "mean": 0.736, "linear": 0.719, "last-8": 0.680}, 1000, "mean"),
        ({"final": 0.8753, "mean": 0.8596, "linear": 0.8716, "last-8": 0.8801}, 2493, "last-8"),
        ({"final": 0.632, "mean": 0.534, "linear": 0.556, "last-8": 0.566}, 1000, "final"),
        ({"final": 0.667, "mean": 0.611, "linear": 0.611, "last-8": 0.556}, 18, "linear"),  # so few say nothing
    ],
)
def test_of_ways_within_a_standard_error_the_steadiest_is_kept(right, n, kept):
    accuracy = PrefixAccuracy()
    accuracy.total[-1] = n
    accuracy.right[:, -1] = n * torch.tensor([right[way] for way in accuracy.ways], dtype=torch.float64)
    assert accuracy.best == kept


def test_a_response_that_has_ended_keeps_its_score():
    """Past its end its final reward is held, and would weigh in a mean."""
    accuracy = PrefixAccuracy(("mean",))
    held = torch.tensor([[0.0, 3.0, 3.0, 3.0, 3.0, 3.0]])  # a response of two tokens: its mean is 1.5
    longer = torch.full((1, 6), 2.0)
    accuracy.add(held, longer, torch.tensor([2]), torch.tensor([6]), torch.tensor([0]))
    assert accuracy.summary()["by_fraction"]["1.0"] == 0.0
