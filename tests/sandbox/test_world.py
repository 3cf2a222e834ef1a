"""The sandbox world: what the true reward reads, and that its reviews, prompts and pairs are as promised."""

import math
import random
from collections import Counter

import pytest

from rgtg.sandbox import world
from rgtg.sandbox.grammar import (
    ASPECTS,
    CLAUSES,
    CONCESSIONS,
    FILLERS,
    HOPE,
    HOPES,
    INTENSITY,
    NEGATIONS,
    POLAR,
    POLARITY,
    PRODUCTS,
    VERDICTS,
)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("the battery is good .", 1.0),
        ("the battery is great .", 2.0),
        ("the battery is weak .", -1.0),
        ("the motor breaks .", -2.0),
        # negation flips, before or far before the word, and twice is not at all
        ("the battery is not great .", -2.0),
        ("the motor never breaks .", 2.0),
        ("the lid is hardly bad .", 1.0),
        ("we do not really enjoy the seat .", -1.25),
        ("the motor hardly never breaks .", -2.0),
        # a negation ends with its clause
        ("the lid is not bad and the seat is good .", 1.0),
        ("the lid is not bad , the seat is good .", 1.0),
        # intensity scales the next polar word only
        ("the screen is very great .", 3.0),
        ("the screen is slightly good .", 0.5),
        ("the screen is very dim and ugly .", (-1.5 - 1.0) / 2),
        ("what a very good great phone .", (1.5 + 2.0) / 2),
        # after "but" weighs double, to the end of the sentence
        ("the screen is bright but the app is slow .", (1 - 2) / 3),
        ("the screen is bright , but the app is slow and the lid is bad .", (1 - 2 - 2) / 5),
        ("the screen is bright but the app is slow . the lid is good .", (1 - 2 + 1) / 4),
        # under "although" or "though" weighs half, to the comma
        ("although the screen is bright , the app is slow .", (0.5 - 1) / 1.5),
        ("although the screen is bright and the lid is good , the app is slow .", (0.5 + 0.5 - 1) / 2),
        ("the app is slow , though the screen is bright .", (-1 + 0.5) / 1.5),
        ("the lid is good but although the seat is bad , the app is slow .", (1 - 1 - 2) / 4),
        # a hope weighs half
        ("i wanted to love it but the app is slow .", (0.5 * 2 - 2) / 2.5),
        # a mean, so that repeating wins nothing
        ("the battery is good . " * 20, 1.0),
        ("good good good", 1.0),
        # no sentiment
        ("", 0.0),
        ("review of the phone by a nurse after a week :", 0.0),
        ("the battery is not", 0.0),
        ("but but but , although . not very", 0.0),
        ("日本語 \x00\ud800 <|eos|> 12 %%", 0.0),
        # malformed texts are read as far as they can be
        ("The Battery Is GREAT", 2.0),
        ("the battery is great.the lid is bad", 0.5),
        ("\n\tgood", 1.0),
        ("review of the phone : the battery is good , but the app is sl", 1.0),
    ],
)
def test_true_reward_reads_clauses(text: str, reward: float) -> None:
    assert world.true_reward(text) == pytest.approx(reward)


def test_true_reward_stays_in_its_range_on_word_salad() -> None:
    rng = random.Random(0)
    words = [*POLARITY, *NEGATIONS, *HOPES, *INTENSITY, *CONCESSIONS, "but", "and", ",", ".", "the"]
    rewards = [world.true_reward(" ".join(rng.choices(words, k=rng.randrange(20)))) for _ in range(5000)]
    assert min(rewards) == -3
    assert max(rewards) == 3


def test_a_word_has_one_polarity_and_neutral_words_have_none() -> None:
    polar = [word for pair in ASPECTS.values() for word in pair]
    polar += [word for kind in POLAR.values() for sides in kind.values() for side in sides for word in side.split()]
    assert [word for word, count in Counter(polar).items() if count > 1] == []
    assert all(world.true_reward(prompt) == 0 for prompt in world.PROMPTS)
    fillers = {word for phrases in FILLERS.values() for phrase in phrases for word in phrase.split()}
    assert fillers.isdisjoint(POLARITY)
    assert (fillers | set(PRODUCTS) | set(ASPECTS)).isdisjoint(NEGATIONS | HOPES)


def test_every_clause_says_what_it_was_made_to_say() -> None:
    rng = random.Random(0)
    for row in CLAUSES + VERDICTS + HOPE:
        for sign in (1, -1):
            clause = world.fill(rng, row, sign, iter(PRODUCTS["phone"]))
            assert world.true_reward(clause) * sign > 0, clause
            assert "{" not in clause


def test_reviews_are_short_plain_text_about_their_product() -> None:
    rng = random.Random(0)
    for _ in range(200):
        for product, aspects in PRODUCTS.items():
            review = world.review(rng, product)
            words = review.split(" ")
            assert 15 <= len(words) <= 45
            assert all(word.isalpha() or word in ",." for word in words)
            assert review == review.lower().strip()
            assert set(words).isdisjoint(ASPECTS.keys() - set(aspects))


def test_the_vocabulary_is_small() -> None:
    assert 150 <= len({word for text in world.texts(4000, 0) for word in text.split(" ")}) <= 300


def test_prefixes_mislead() -> None:
    """Measured on 5,000: the sign of a quarter is wrong in 41%, of a half in 30%; opinions are balanced."""
    rng = random.Random(0)
    reviews = [world.review(rng, rng.choice(list(PRODUCTS))).split(" ") for _ in range(3000)]
    rewards = [world.true_reward(" ".join(words)) for words in reviews]

    def wrong(part: float) -> float:
        starts = [world.true_reward(" ".join(words[: int(part * len(words))])) for words in reviews]
        return sum(start * reward < 0 for start, reward in zip(starts, rewards, strict=True)) / len(reviews)

    assert 0.35 < wrong(0.25) < 0.47
    assert 0.25 < wrong(0.5) < 0.35
    # and they mislead in both directions alike
    assert abs(sum(rewards) / len(rewards)) < 0.1
    assert 1.0 < math.sqrt(sum(reward**2 for reward in rewards) / len(rewards)) < 1.4


def test_labels_follow_bradley_terry() -> None:
    n = 4000
    pairs = world.preference_pairs(n, seed=5)
    gaps = [
        world.true_reward(pair["prompt"] + pair["chosen"]) - world.true_reward(pair["prompt"] + pair["rejected"])
        for pair in pairs
    ]
    # Of pairs whose rewards differ by g, the better one should be chosen in sigmoid(g): compare within bins of g.
    for low, high in ((0.01, 0.5), (0.5, 1), (1, 2), (2, 3), (3, 6)):
        within = [gap for gap in gaps if low <= abs(gap) < high]
        expected = [1 / (1 + math.exp(-abs(gap))) for gap in within]
        deviation = math.sqrt(sum(p * (1 - p) for p in expected))
        assert len(within) > 100
        assert abs(sum(gap > 0 for gap in within) - sum(expected)) < 4 * deviation


def test_pairs_are_completions_of_their_prompt() -> None:
    for pair in world.preference_pairs(200, seed=0):
        assert list(pair) == ["prompt", "chosen", "rejected"]
        product = world.PROMPTS[pair["prompt"]]
        assert pair["prompt"].startswith(f"review of the {product} ")
        assert pair["chosen"] != pair["rejected"]
        for response in (pair["chosen"], pair["rejected"]):
            assert response.startswith(" ")
            assert not response.startswith("  ")


def test_prompts_are_many_and_distinct() -> None:
    assert len(world.PROMPTS) >= 2000
    prompts = world.prompts(2000, seed=0)
    assert len(set(prompts)) == 2000
    assert set(prompts) <= world.PROMPTS.keys()
    assert "review of the phone :" in world.PROMPTS
    assert world.prompt("tent", "an artist", "in the snow") == "review of the tent by an artist in the snow :"
    with pytest.raises(ValueError, match="larger than population"):
        world.prompts(len(world.PROMPTS) + 1, seed=0)


def test_the_seed_decides() -> None:
    for make in (world.prompts, world.texts, world.preference_pairs):
        assert make(20, 7) == make(20, 7)
        assert make(20, 7) != make(20, 8)
