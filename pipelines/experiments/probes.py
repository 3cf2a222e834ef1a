"""What gives a pair's sides away: how well its lengths alone, or its 2-grams, tell chosen from rejected."""

from pipelines.experiments.policies import Pair


def by_length(pairs: list[Pair]) -> float:
    """Of the second half of `pairs`, the part whose sides a threshold on words, fitted to the first half, tells apart.

    A tie is half.
    """
    differences = [len(pair.chosen.split()) - len(pair.rejected.split()) for pair in pairs]
    half = len(pairs) // 2
    longer = sum(d > 0 for d in differences[:half]) >= sum(d < 0 for d in differences[:half])
    signed = [d if longer else -d for d in differences[half:]]
    return sum((d > 0) + 0.5 * (d == 0) for d in signed) / len(signed)


def by_two_grams(pairs: list[Pair]) -> float:
    """The same by logistic regression on 1- and 2-grams. Needs scikit-learn."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    half = len(pairs) // 2
    known, others = pairs[:half], pairs[half:]
    counts = CountVectorizer(ngram_range=(1, 2), min_df=2, token_pattern=r"\w+|[^\w\s]")
    probe = make_pipeline(counts, LogisticRegression(max_iter=1000))
    probe.fit([side for pair in known for side in (pair.chosen, pair.rejected)], [1, 0] * half)
    chosen, rejected = (probe.decision_function([getattr(p, side) for p in others]) for side in ("chosen", "rejected"))
    return float(((chosen > rejected) + 0.5 * (chosen == rejected)).mean())
