"""Which completions of a prompt become chosen and rejected, and which side of a split something is on."""

import hashlib
from math import isfinite
from typing import Any

TIED = "all completions of the prompt have the same reward"
IDENTICAL = "the best and the worst completion are the same text"
FEW = "the prompt has fewer than two completions with a finite reward"
CLOSE = "the margin is too small"


def best_and_worst(completions: list[dict[str, Any]], min_margin: float = 0.0) -> tuple[dict, dict] | str:
    """The completions of highest and of lowest reward, or the reason why they make no pair.

    A tie carries no preference and identical texts differ by nothing: neither is ever a pair.
    """
    scored = [c for c in completions if c["reward"] is not None and isfinite(c["reward"])]
    if len(scored) < 2:
        return FEW
    best, worst = max(scored, key=lambda c: c["reward"]), min(scored, key=lambda c: c["reward"])
    if best["reward"] == worst["reward"]:
        return TIED
    if best["text"] == worst["text"]:
        return IDENTICAL
    if best["reward"] - worst["reward"] <= min_margin:
        return CLOSE
    return best, worst


def fraction(key: str) -> float:
    """Where in [0, 1) a key falls: the same in every run, evenly over many keys."""
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:8], "big") / 2**64
