"""A completion is its request's alone: bit by bit the same in any company, in any order, on rows that others used."""

import random

import pytest
import torch

from rgtg.decoding.decoder import Decoder
from rgtg.models.reward import RewardModel

PROMPTS = [
    "hello there",
    "",
    "A longer prompt, of more than thirty-two tokens.",
    "x",
    [{"role": "user", "content": "hi"}],
    "the sixth",
]
OPTIONS = {"samples": 3, "max_new_tokens": 12, "seed": 0}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
# With 5 or 7 rows a matrix product rounds the last ones in another way than the first.
@pytest.mark.parametrize(
    ("method", "slots"),
    [("pargs", 16), ("pargs", 5), ("pargs", 7), ("pargs", 1), ("pargs", 2), ("args", 5), ("unguided", 5)],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_company_order_and_refill_change_no_bit(language_dir, reward_dir, method, slots, device, dtype):
    decoder = Decoder.load(language_dir, reward_dir, method, slots=slots, device=device, dtype=dtype)
    together = decoder.generate(PROMPTS, **OPTIONS)
    alone = [decoder.generate([prompt], **OPTIONS)[0] for prompt in PROMPTS]
    assert together == alone
    order = list(range(len(PROMPTS)))
    random.Random(0).shuffle(order)
    shuffled = decoder.generate([PROMPTS[i] for i in order], **OPTIONS)
    assert [shuffled[order.index(i)] for i in range(len(PROMPTS))] == together
    again = Decoder.load(language_dir, reward_dir, method, slots=slots, device=device, dtype=dtype)
    assert again.generate(PROMPTS, **OPTIONS) == together


@pytest.mark.parametrize(("method", "head"), [("pargs-next-token", "next-token"), ("genarm", "log-probability")])
def test_company_and_order_change_no_bit_of_a_head_of_next_tokens(language_dir, make_language, tmp_path, method, head):
    RewardModel.load(make_language(seed=5), head=head).save(tmp_path)
    decoder = Decoder.load(language_dir, str(tmp_path), method, slots=8)
    together = decoder.generate(PROMPTS, **OPTIONS)
    assert together == [decoder.generate([prompt], **OPTIONS)[0] for prompt in PROMPTS]
    assert together == decoder.generate(PROMPTS[::-1], **OPTIONS)[::-1]


@pytest.mark.parametrize("method", ["pargs", "unguided"])
def test_what_a_broken_row_leaves_behind_reaches_no_later_one(language_dir, reward_dir, method):
    """Hidden slots are multiplied by zero, and zero times NaN is NaN."""
    expected = Decoder.load(language_dir, reward_dir, method, slots=8).generate(PROMPTS, **OPTIONS)
    decoder = Decoder.load(language_dir, reward_dir, method, slots=8)
    decoder.generate(["others", "came before"], **OPTIONS)
    guidance = decoder.engine.guidance
    caches = [decoder.engine.language.slots.cache, *([guidance.slots.cache] if guidance else [])]
    with torch.inference_mode():
        for cache in caches:
            cache.keys.fill_(torch.nan)
            cache.values.fill_(torch.nan)
    assert decoder.generate(PROMPTS, **OPTIONS) == expected


def test_more_samples_leave_the_first_ones_as_they_are(language_dir, reward_dir):
    decoder = Decoder.load(language_dir, reward_dir, "pargs", slots=8)
    many = decoder.generate(PROMPTS, **(OPTIONS | {"samples": 9}))
    assert [row[:3] for row in many] == decoder.generate(PROMPTS, **OPTIONS)


def test_a_longer_limit_only_adds_tokens(language_dir, reward_dir):
    decoder = Decoder.load(language_dir, reward_dir, "pargs", slots=8)
    short, long = (decoder.generate(PROMPTS, **(OPTIONS | {"max_new_tokens": n})) for n in (6, 40))
    for one, other in zip(sum(short, []), sum(long, []), strict=True):
        assert other.token_ids[: one.num_tokens] == one.token_ids
        assert other.token_rewards[: one.num_tokens] == one.token_rewards


def test_requests_that_come_while_others_run(language_dir, reward_dir):
    """As an actor feeds its engine: the next prompt arrives while completions of the last ones are running."""
    decoder = Decoder.load(language_dir, reward_dir, "pargs", slots=8)
    expected = decoder.generate(PROMPTS, **OPTIONS)
    requests = [decoder.request(prompt, **OPTIONS) for prompt in PROMPTS]
    engine, waiting, finished = decoder.engine, list(requests), []
    engine.submit(waiting.pop(0))
    while engine.busy:
        finished += engine.step()
        if waiting and not engine.queue:
            engine.submit(waiting.pop(0))
    assert sorted(map(id, finished)) == sorted(map(id, requests))  # each one once
    assert [decoder.completions(request) for request in requests] == expected
    assert engine.step() == []


def test_samples_seeds_and_prompts_differ(language_dir, reward_dir):
    decoder = Decoder.load(language_dir, reward_dir, "pargs", slots=8)
    first, second = (decoder.generate(["hello"], samples=8, max_new_tokens=16, seed=seed)[0] for seed in (0, 1))
    texts = [tuple(c.token_ids) for c in first + second]
    assert len(set(texts)) > 12
    again = decoder.generate(["hello"], samples=8, max_new_tokens=16, seed=0)[0]
    assert again == first


def test_the_same_prompt_twice_is_completed_alike(language_dir, reward_dir):
    decoder = Decoder.load(language_dir, reward_dir, "pargs", slots=8)
    one, other, different = decoder.generate(["ab", "ab", "ac"], **OPTIONS)
    assert one == other
    assert one != different


def test_the_prompt_id_keys_the_noise(language_dir, reward_dir):
    decoder = Decoder.load(language_dir, reward_dir, "pargs", slots=8)
    requests = [decoder.request("ab", prompt_id=name, **OPTIONS) for name in ("one", "two", "one")]
    decoder.engine.run(requests)
    one, two, again = (decoder.completions(request) for request in requests)
    assert one == again
    assert [c.token_ids for c in one] != [c.token_ids for c in two]


def test_greedy_samples_are_one_and_the_same(language_dir, reward_dir):
    decoder = Decoder.load(language_dir, reward_dir, "pargs-greedy", slots=5)
    for row in decoder.generate(PROMPTS, **OPTIONS):
        assert row == [row[0]] * 3
        assert row[0].guided_logprob == 0.0


@pytest.mark.parametrize("method", ["pargs", "pargs-greedy", "best-of-n", "cards", "cd-blockwise", "pargs-best-of-n"])
def test_a_sample_is_the_same_beside_samples_that_are_steered_otherwise(language_dir, reward_dir, method):
    """Guided ones as without the others; unguided ones as the samples of these numbers of an unguided run."""
    options = {"target_reward": 0.0} if method == "cards" else {}
    decoder = Decoder.load(language_dir, reward_dir, method, slots=5, k=10, **options)
    length = {"max_new_tokens": 12, "seed": 0}
    mixed = decoder.generate(PROMPTS, samples=2, unguided_samples=3, **length)
    alone = decoder.generate(PROMPTS, samples=2, **length)
    plain = Decoder.load(language_dir, reward_dir, "unguided", slots=5, k=10).generate(PROMPTS, samples=5, **length)
    for row, own, unguided in zip(mixed, alone, plain, strict=True):
        assert row[:2] == own
        assert [(c.token_ids, c.logprob) for c in row[2:]] == [(c.token_ids, c.logprob) for c in unguided[2:]]
        assert [(c.method, c.beta) for c in row[2:]] == [("unguided", 0.0)] * 3
        assert {c.method for c in row[:2]} == {method}
    assert any(a.token_ids != b.token_ids for row in mixed for a, b in [(row[0], row[2])])


def test_an_opposed_sample_is_that_of_the_opposite_beta(language_dir, reward_dir):
    decoder = Decoder.load(language_dir, reward_dir, "pargs", slots=5, beta=3.0)
    mixed = decoder.generate(PROMPTS, samples=1, opposed_samples=2, max_new_tokens=12, seed=0)
    opposite = Decoder.load(language_dir, reward_dir, "pargs", slots=5, beta=-3.0)
    for row, other in zip(mixed, opposite.generate(PROMPTS, samples=3, max_new_tokens=12, seed=0), strict=True):
        assert row[1:] == other[1:]
        assert [c.beta for c in row] == [3.0, -3.0, -3.0]
