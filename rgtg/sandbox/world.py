"""The sandbox world: product reviews from a small grammar, and the true reward of any text.

The reviews are built to mislead a reader of prefixes: many open well and end badly, or the other way round, so that a
reward model has something to learn that the first words do not give away. Everything here is pure Python and
deterministic by seed.
"""

import itertools
import math
import random
import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rgtg.sandbox.grammar import (
    ASPECTS,
    CLAUSES,
    CONCESSIONS,
    COURSES,
    FILLERS,
    HOPE,
    HOPES,
    INTENSITY,
    NEGATIONS,
    OCCASIONS,
    OWNERS,
    POLAR,
    POLARITY,
    PRODUCTS,
    VERDICTS,
)

Row = TypeVar("Row", bound=tuple)

MIN_WORDS, MAX_WORDS = 15, 45

_SLOT = re.compile(r"\{(\w+)\}")
_TOKEN = re.compile(r"[a-z]+|[.,:;!?]")
_SENTENCE_ENDS = frozenset(".:;!?")
_BOUNDARIES = _SENTENCE_ENDS | CONCESSIONS | {",", "and", "but"}


def review(rng: random.Random, product: str) -> str:
    """One review of `product`, of 15 to 45 words, punctuation marks counted as words."""
    while True:
        opinion = rng.choice((1, -1))
        # A review speaks of an aspect once, until it has named them all.
        aspects = itertools.cycle(rng.sample(PRODUCTS[product], len(PRODUCTS[product])))
        parts = []
        for mark in _pick(rng, COURSES)[1].split(" "):
            sign = {"-": -opinion, "H": -opinion, "~": rng.choice((1, -1))}.get(mark, opinion)
            table = {"V": VERDICTS, "H": HOPE, "+": CLAUSES, "-": CLAUSES, "~": CLAUSES}.get(mark)
            row = _pick(rng, table) if table else (1, mark, False)
            parts.append(fill(rng, row, sign, aspects))
        text = re.sub(r"\ba (?=[aeiou])", "an ", " ".join(parts))
        if MIN_WORDS <= len(text.split(" ")) <= MAX_WORDS:
            return text


def fill(rng: random.Random, row: tuple[int, str, bool], sign: int, aspects: Iterator[str]) -> str:
    """A row of the clause tables with its slots filled, so that it is praise for sign 1 and blame for -1."""
    _, template, negated = row
    side = 0 if (sign > 0) != negated else 1
    about = next(aspects) if "{aspect}" in template else ""

    def word(slot: re.Match[str]) -> str:
        name = slot[1]
        if name in FILLERS:
            return rng.choice(FILLERS[name])
        if name == "adjective" and about and rng.random() < 0.5:
            return ASPECTS[about][side]
        if name in POLAR:
            return rng.choice(POLAR[name][rng.choice(list(POLAR[name]))][side].split(" "))
        return about  # the one slot that is left is {aspect}

    return _SLOT.sub(word, template)


def prompt(product: str, owner: str = "", occasion: str = "") -> str:
    """What a review follows: "review of the phone by a nurse after a week :". A full text is prompt + " " + review."""
    return " ".join(part for part in (f"review of the {product}", owner and f"by {owner}", occasion, ":") if part)


# Every prompt of the world with its product, in a fixed order.
PROMPTS = {prompt(*names): names[0] for names in itertools.product(PRODUCTS, ("", *OWNERS), ("", *OCCASIONS))}


def prompts(n: int, seed: int) -> list[str]:
    """`n` distinct prompts. Raises ValueError if the world has fewer (it has `len(PROMPTS)`)."""
    return random.Random(seed).sample(list(PROMPTS), n)


def texts(n: int, seed: int) -> list[str]:
    """`n` full texts, prompt and review, as the language model is trained on."""
    rng = random.Random(seed)
    names = rng.choices(list(PROMPTS), k=n)
    return [f"{name} {review(rng, PROMPTS[name])}" for name in names]


def preference_pairs(n: int, seed: int) -> list[dict[str, str]]:
    """`n` pairs {prompt, chosen, rejected}: two independent reviews of one prompt, ordered by Bradley-Terry.

    P(a is chosen) = sigmoid(true_reward(a) - true_reward(b)), so a pair is often the wrong way round when its reviews
    are close, as with human labels. Responses start with a space: prompt + chosen is the full text.
    """
    rng = random.Random(seed)
    pairs = []
    for name in rng.choices(list(PROMPTS), k=n):
        a, b = (f" {review(rng, PROMPTS[name])}" for _ in range(2))
        if rng.random() >= 1 / (1 + math.exp(true_reward(b) - true_reward(a))):
            a, b = b, a
        pairs.append({"prompt": name, "chosen": a, "rejected": b})
    return pairs


def true_reward(text: str) -> float:
    """How good the text says that the product is, in [-3, 3]; 0.0 where it says nothing. Takes any text.

    The weighted mean over clauses of their polarity, so that length alone wins nothing. A clause's polarity is the
    mean of its polar words: +-1 or +-2, times the intensity before the word, flipped by every negation before it.
    Clauses after "but" weigh 2 to the end of the sentence; those under "although", "though" or a hope ("i wanted to")
    weigh half of what they would, up to the comma.
    """
    total = weights = 0.0
    main, aside = 1.0, 1.0  # weight in this sentence, and the discount of a concession within it
    sign, degree = 1.0, 1.0
    found: list[float] = []  # polar words of this clause
    for word in [*_TOKEN.findall(text.lower()), "."]:
        if word in _BOUNDARIES:
            if found:
                total += main * aside * sum(found) / len(found)
                weights += main * aside
            sign, degree, found = 1.0, 1.0, []
            if word in CONCESSIONS:
                aside = 0.5
            elif word != "and":  # a second clause joined by "and" keeps the weight of the first
                aside = 1.0
            if word == "but":
                main = 2.0
            elif word in _SENTENCE_ENDS:
                main = 1.0
        elif word in HOPES:
            aside = 0.5
        elif word in NEGATIONS:
            sign = -sign
        elif word in INTENSITY:
            degree = INTENSITY[word]
        elif word in POLARITY:
            found.append(sign * degree * POLARITY[word])
            degree = 1.0
    return total / weights if weights else 0.0


def _pick(rng: random.Random, table: Sequence[Row]) -> Row:
    """A row of a table whose first column is the weight."""
    return rng.choices(table, weights=[row[0] for row in table])[0]
