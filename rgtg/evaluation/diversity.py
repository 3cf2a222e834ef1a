"""How different texts are from one another, as the papers of the field measure it."""

from collections.abc import Sequence
from itertools import combinations


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams of whitespace-separated words (Li et al. 2016); 0.0 where there are none."""
    grams = [gram for text in texts for gram in zip(*(text.split()[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else 0.0


def rouge_l(first: str, second: str) -> float:
    """ROUGE-L F1 of two texts (Lin 2004): their longest common subsequence of words, lower-cased, as a part of both.

    1.0 for equal texts, also empty ones.
    """
    a, b = first.lower().split(), second.lower().split()
    if not a and not b:
        return 1.0
    row = [0] * (len(b) + 1)  # of the table of common subsequences: up to here in a, up to each word of b
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(a) + len(b))


def self_rouge_l(samples: Sequence[str]) -> float | None:
    """Mean ROUGE-L over all pairs of the samples of one prompt, the lower the more diverse; None for a single one."""
    scores = [rouge_l(*pair) for pair in combinations(samples, 2)]
    return sum(scores) / len(scores) if scores else None
