import pytest

from rgtg.evaluation.diversity import distinct, rouge_l, self_rouge_l


def test_distinct_counts_n_grams_over_all_texts():
    texts = ["a b a b", "a b c"]
    assert distinct(texts, 1) == 3 / 7
    assert distinct(texts, 2) == 3 / 5, "ab, ba, ab; ab, bc: no bigram spans two texts"
    assert distinct(["one"], 2) == 0.0


def test_rouge_l_is_f1_of_the_longest_common_subsequence():
    # The example of Lin 2004: "police kill the gunman" has "police the gunman" in common with the reference.
    reference = "police killed the gunman"
    assert rouge_l(reference, "police kill the gunman") == pytest.approx(0.75)
    assert rouge_l(reference, "the gunman kill police") == pytest.approx(0.5)
    assert rouge_l("a b c d e", "x b y d") == pytest.approx(2 * 2 / 9)
    assert rouge_l("", "") == rouge_l("Same", "same") == 1.0
    assert rouge_l("", "a") == 0.0


def test_self_rouge_l_is_the_mean_over_pairs_of_samples():
    assert self_rouge_l(["a b", "a b", "c d"]) == pytest.approx(1 / 3)
    assert self_rouge_l(["alone"]) is None
