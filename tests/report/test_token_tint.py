"""Which part of a text each token is, what it adds to the reward, and how strong its tint is."""

import pytest

from rgtg.report.token_tint import BROKEN, decoded, full_tint, shared_beginning, tint, tinted


def of_bytes(ids: list[int]) -> str:
    """A token a byte, as byte-level tokenizers decode it."""
    return bytes(ids).decode("utf-8", "replace")


def of_words(ids: list[int]) -> str:
    """Tokens that are words, with a space between them: the text of one depends on whether another is before it."""
    return " ".join("abcdef"[i] for i in ids)


@pytest.mark.parametrize("text", ["plain", "naïve", "日本語 text", "🙂🙂", "e\u0301 🏳️‍🌈", ""])
def test_bytes_of_a_character_are_one_piece(text):
    pieces = decoded(list(text.encode()), of_bytes)
    assert [piece for piece, _ in pieces] == list(text)
    assert [end for _, end in pieces] == [len(text[: i + 1].encode()) for i in range(len(text))]


def test_bytes_that_never_become_a_character_end_a_piece():
    ids = [0xF0, 0x9F, *b"ab", 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, *b"c"]
    pieces = decoded(ids, of_bytes)
    assert pieces[-1][1] == len(ids)
    assert "".join(text for text, _ in pieces) == of_bytes(ids)
    assert decoded([0xF0, 0x9F], of_bytes) == [(BROKEN, 2)]


def test_a_space_that_only_shows_between_tokens_is_kept():
    assert decoded([0, 1, 2], of_words) == [("a", 1), (" b", 2), (" c", 3)]


def test_increments_are_differences_and_the_first_is_not_known():
    pieces = tinted(list(b"abc"), [1.0, 0.5, 2.0], of_bytes, shared=1)
    assert [piece.increment for piece in pieces] == [None, -0.5, 1.5]
    assert [piece.reward for piece in pieces] == [1.0, 0.5, 2.0]
    assert [piece.shared for piece in pieces] == [True, False, False]


def test_merged_tokens_add_what_all_of_them_add():
    ids = list("aé".encode())
    assert [piece.increment for piece in tinted(ids, [0.0, 5.0, 3.0], of_bytes)] == [None, 3.0]


@pytest.mark.parametrize("rewards", [None, [1.0], [float("nan")] * 2, [None, None]])
def test_without_rewards_nothing_is_known(rewards):
    assert [(p.text, p.increment, p.reward) for p in tinted(list(b"ab"), rewards, of_bytes)] == [
        ("a", None, None),
        ("b", None, None),
    ]


def test_only_the_first_tokens_are_decoded():
    assert [p.text for p in tinted(list(b"abcdef"), [0.0] * 6, of_bytes, most=2)] == ["a", "b"]


@pytest.mark.parametrize(
    ("first", "second", "shared"), [([1, 2, 3], [1, 2, 4], 2), ([1], [1, 2], 1), ([], [1], 0), ([2], [1], 0)]
)
def test_a_shared_beginning(first, second, shared):
    assert shared_beginning(first, second) == shared


def test_the_tint_is_full_from_the_98th_percentile_on():
    increments = [i / 100 for i in range(100)] + [None]
    full = full_tint(increments)
    assert full == 0.98
    assert [tint(x, full) for x in (full, 50.0, -full, -50.0, 0.0, None, full / 5, -full / 2.5)] == [
        *(5, 5, -5, -5, 0, 0, 1, -2)
    ]


def test_where_nothing_changes_nothing_is_tinted():
    assert full_tint([]) == full_tint([0.0, None]) == 0
    assert tint(1.0, 0.0) == 0
