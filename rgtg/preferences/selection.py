"""Which completions of a prompt become chosen and rejected: a strategy is a function, and a row of STRATEGIES.

Every choice is a function of one prompt's completions and of `Night`, what a first pass over all of them has found.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isfinite, log, sqrt
from typing import Any, Literal

from rgtg.methods import STRATEGIES, Pool

FEW = "too few completions with a text and a finite score"
TRUNCATED = "all that could be chosen were cut off at max_new_tokens (raise it, or set preferences.truncated=keep)"
TIED = "all completions have the same score"
CLOSE = "no chosen completion has a higher score by more than min_margin"
LENGTH = "no two completions are of similar length"
IDENTICAL = "the completions are the same text"
SIMILAR = "the completions are too similar"

MATCHED = 0.2  # lengths match if they differ by no more than this part of the longer one
NEAR = 2.0  # best-near: standard deviations below the mean (arXiv 2502.16825)
FEW_FOR_DEVIATION = 8  # with fewer samples a prompt's own deviation says little: the night's is taken


@dataclass(frozen=True)
class Candidate:
    """A completion that may take part in a pair; `score` is what it is ranked by."""

    index: int  # in the completions of its prompt
    text: str
    token_ids: list[int]
    score: float
    truncated: bool
    pool: Pool


@dataclass(frozen=True)
class Night:
    """Of all prompts: the score's slope on log(tokens) and its standard deviation, both within a prompt's pool."""

    slope: float = 0.0
    deviation: float = 0.0


class Statistics:
    """Adds up what `Night` needs, prompt by prompt."""

    def __init__(self) -> None:
        self.count, self.xx, self.xy, self.yy = 0, 0.0, 0.0, 0.0  # sums of squares within pools

    def add(self, candidates: list[Candidate]) -> None:
        for pool in {c.pool for c in candidates}:
            points = [(log(len(c.token_ids)), c.score) for c in candidates if c.pool == pool]
            x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
            self.count += len(points) - 1
            self.xx += sum((a - x) ** 2 for a, _ in points)
            self.xy += sum((a - x) * (b - y) for a, b in points)
            self.yy += sum((b - y) ** 2 for _, b in points)

    def night(self) -> Night:
        slope = self.xy / self.xx if self.xx else 0.0
        return Night(slope, sqrt(self.yy / self.count) if self.count else 0.0)


# Keys: of all pairs (chosen, rejected) the one with the smallest is taken. `scores` are those of the rejected's pool.


def widest(chosen: Candidate, rejected: Candidate, scores: list[float], night: Night, prompt_id: str) -> tuple:
    """The best chosen and the worst rejected one."""
    return (rejected.score - chosen.score,)


def near(chosen: Candidate, rejected: Candidate, scores: list[float], night: Night, prompt_id: str) -> tuple:
    """The best, and the one nearest to two deviations below the mean: of many samples the worst are broken."""
    mean = sum(scores) / len(scores)
    deviation = night.deviation
    if len(scores) >= FEW_FOR_DEVIATION:
        deviation = sqrt(sum((score - mean) ** 2 for score in scores) / (len(scores) - 1))
    return -chosen.score, abs(rejected.score - (mean - NEAR * deviation))


def any_rejected(chosen: Candidate, rejected: Candidate, scores: list[float], night: Night, prompt_id: str) -> tuple:
    """The best, and another one at random."""
    return -chosen.score, fraction(f"rejected/{prompt_id}/{rejected.index}")


def any_pair(chosen: Candidate, rejected: Candidate, scores: list[float], night: Night, prompt_id: str) -> tuple:
    """Two at random that the score confirms."""
    return (fraction(f"pair/{prompt_id}/{chosen.index}/{rejected.index}"),)


@dataclass(frozen=True)
class Rules:
    """Which completions and pairs a selection may take."""

    truncated: Literal["never-chosen", "drop", "keep"] = "never-chosen"
    min_margin: float = 0.0
    max_similarity: float = 1.0
    length: Literal["free", "matched", "residual"] = "free"


def candidates(completions: list[dict[str, Any]], rules: Rules) -> list[Candidate]:
    """The completions of a prompt that may take part: with a text that is not blank, and a finite score.

    `completions` as in completions/: the first one is by the run's own method and beta.
    """
    found = []
    for index, c in enumerate(completions):
        truncated = c["finish_reason"] == "length" and rules.truncated != "keep"
        if c["score"] is None or not isfinite(c["score"]) or not c["text"].strip():
            continue
        if truncated and rules.truncated == "drop":
            continue
        pool = pool_of(c, completions[0])
        found.append(Candidate(index, c["text"], c["token_ids"], c["score"], truncated, pool))
    return found


def pool_of(completion: dict[str, Any], first: dict[str, Any]) -> Pool:
    """Which pool a completion is of; `first` is the prompt's first one, by the run's own method and beta."""
    if (completion["method"], completion["beta"]) == (first["method"], first["beta"]):
        return "own"
    return "unguided" if completion["method"] == "unguided" else "opposed"


def select(
    found: list[Candidate], strategy: str, rules: Rules, night: Night, prompt_id: str
) -> Sequence[Candidate] | str:
    """The chosen and the rejected one of a prompt's candidates (of a ranking: all), or the reason why there are none.

    A tie carries no preference and equal texts differ by nothing: neither is ever a pair.
    """
    row = STRATEGIES[strategy]
    if rules.length == "residual":
        found = [replace(c, score=c.score - night.slope * log(len(c.token_ids))) for c in found]
    if row.key is None:
        return _rank(found, rules)
    above, below = ([c for c in found if c.pool == pool] for pool in (row.chosen, row.rejected))
    if not above or not below or len({c.index for c in above + below}) < 2:
        return FEW
    if len({c.score for c in above + below}) == 1:
        return TIED
    pairs = [(c, r) for c in above if not c.truncated for r in below if c.index != r.index]
    if not pairs:
        return TRUNCATED
    pairs = [(c, r) for c, r in pairs if c.score - r.score > rules.min_margin]
    if not pairs:
        return CLOSE
    if rules.length == "matched":
        pairs = [(c, r) for c, r in pairs if _lengths_match(c, r)]
        if not pairs:
            return LENGTH
    scores = [c.score for c in below]
    key = globals()[row.key]
    pairs.sort(key=lambda pair: key(*pair, scores, night, prompt_id))
    first = _alike(*pairs[0], rules.max_similarity)
    return first or pairs[0]


def fraction(key: str) -> float:
    """Where in [0, 1) a key falls: the same in every run, evenly over many keys."""
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:8], "big") / 2**64


def _rank(found: list[Candidate], rules: Rules) -> list[Candidate] | str:
    """A prompt's candidates of every pool, the highest score first, or the reason why fewer than two are left.

    Each differs from all before it in text, and is lower in score by more than `min_margin`. Those that were cut off
    are left out: a rank says that a text is better than all below it. `Rules.length` "matched" is of pairs alone.
    """
    if len(found) < 2:
        return FEW
    ranked: list[Candidate] = []
    reason = TRUNCATED
    for c in sorted(found, key=lambda c: -c.score):
        if c.truncated:
            continue
        if ranked and ranked[-1].score - c.score <= rules.min_margin:
            reason = CLOSE
        elif alike := [r for r in (_alike(above, c, rules.max_similarity) for above in ranked) if r]:
            reason = alike[0]
        else:
            ranked.append(c)
    return ranked if len(ranked) > 1 else reason


def _lengths_match(a: Candidate, b: Candidate) -> bool:
    shorter, longer = sorted((len(a.token_ids), len(b.token_ids)))
    return longer - shorter <= MATCHED * longer


def _alike(a: Candidate, b: Candidate, most: float) -> str | None:
    """Why two completions are too much alike to differ by a preference; None where they are not."""
    if normal(a.text) == normal(b.text):
        return IDENTICAL
    return SIMILAR if similarity(a.token_ids, b.token_ids) > most else None


def similarity(a: list[int], b: list[int]) -> float:
    """Dice's coefficient of the token bigrams of two texts, from 0 to 1; linear in their length, also where a model
    repeats one token.
    """
    first, second = (Counter(pairwise([-1, *ids, -1])) for ids in (a, b))
    return 2 * (first & second).total() / (first.total() + second.total())


def normal(text: str) -> str:
    """A text without what no reader sees: form of composition, kind and number of white space."""
    return " ".join(unicodedata.normalize("NFC", text).split())
