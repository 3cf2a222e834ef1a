"""Methods that search above the token, against the papers' loops written plainly: one row, no cache, no rewinding."""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from rgtg.chat import prompt_id
from rgtg.decoding.decoder import Decoder
from rgtg.decoding.search import Draft, Proposal
from rgtg.decoding.token_rule import gumbel, row_key, uniform
from rgtg.errors import UserError
from rgtg.methods import METHODS, Segments
from tests.decoding.test_decoder_reference import PROMPTS, Reference, without_padding
from tests.tolerance import alike

LIMIT = 14


@pytest.fixture(scope="module")
def reference(plain, tokenizer_of, language_dir, reward_dir):
    return SearchReference(
        plain(language_dir), without_padding(plain(reward_dir)), tokenizer_of(language_dir).eos_token_id
    )


@dataclass
class SearchReference(Reference):
    def proposal(self, prompt, kept, key, segments, rule, guided):
        """The ids of one proposal up to the end of its segment, by the key's noise."""
        ids = list(kept)
        while True:
            logprobs = self.logprobs(prompt + ids)
            entropy = -(logprobs.exp() * logprobs).sum().item()
            among = logprobs.argsort(descending=True)[: rule.k]
            tilted = logprobs[among].clone()
            if guided:
                tilted += rule.beta * torch.tensor([self.reward(prompt, [*ids, v]) for v in among.tolist()])
            long_enough = len(ids) - len(kept) >= segments.shortest
            if segments.until == "entropy" and long_enough and entropy >= segments.entropy:
                return ids
            noise = gumbel(torch.tensor([key]), torch.tensor([len(ids)]), among[None])[0]
            ids.append(among[(tilted + noise).argmax()].item())
            if self.ended(ids) or (segments.length and len(ids) - len(kept) == segments.length):
                return ids

    def ended(self, ids):
        return ids[-1] == self.eos_id or len(ids) == LIMIT

    def search(self, prompt, prompt_text, seed, sample, decoder):
        """The completion; how many proposals were judged."""
        segments, rule = decoder.engine.segments, decoder.engine.rule
        guided = METHODS[decoder.method].guidance != "none"
        name = seed, prompt_id(prompt_text), sample
        key, kept, judged = row_key(*name), [], 0
        while not kept or not self.ended(kept):
            proposals = []
            for _ in range(segments.proposals):
                ids = self.proposal(prompt, kept, key, segments, rule, guided)
                proposals.append(ids)
                judged += 1
                reward = self.reward(prompt, ids)
                if segments.accept == "threshold":
                    first = (self.reward(prompt, []) + segments.target) / 2
                    tau = min(first + len(ids) / LIMIT * (segments.target - first), segments.target)
                    if uniform(*name, judged) < min(1, math.exp(min(0, reward - tau) / 0.7)):
                        kept = ids
                        break
                if len(proposals) < segments.proposals:
                    key = row_key(*name, judged)
            else:
                kept = max(proposals, key=lambda ids: self.reward(prompt, ids))
        return kept, judged


CASES = {
    "best-of-n": {"proposals": 4},
    "pargs-best-of-n": {"proposals": 3},
    "cd-blockwise": {"proposals": 3, "segment_tokens": 4},
    "segments": {"proposals": 3, "segment_tokens": 4, "target_reward": 1.0},
    "cards": {"proposals": 4, "segment_tokens": 9, "segment_entropy": 1.5, "target_reward": 1.0},
}


@pytest.mark.parametrize("method", CASES)
def test_tokens_of_every_search(reference, tokenizer_of, language_dir, reward_dir, method):
    decoder = Decoder.load(language_dir, reward_dir, method, k=6, slots=5, **CASES[method])
    outcome = decoder.generate(PROMPTS, samples=3, max_new_tokens=LIMIT, seed=3)
    searched = 0
    for prompt, row in zip(PROMPTS, outcome, strict=True):
        prompt_ids = tokenizer_of(language_dir)(prompt).input_ids
        for sample, completion in enumerate(row):
            ids, judged = reference.search(prompt_ids, prompt, 3, sample, decoder)
            assert completion.token_ids == ids
            rewards = [reference.reward(prompt_ids, ids[: i + 1]) for i in range(len(ids))]
            assert completion.token_rewards == alike(rewards)
            logprob = sum(reference.logprobs(prompt_ids + ids[:i])[v].item() for i, v in enumerate(ids))
            assert completion.logprob == alike(logprob)
            assert completion.guided_logprob is None
            assert completion.finish_reason == ("stop" if ids[-1] == reference.eos_id else "length")
            if METHODS[method].guidance == "none":
                assert completion.reward_calls == judged + (METHODS[method].segments.accept == "threshold")
            else:
                assert completion.reward_calls == 6 * completion.language_calls
            assert completion.language_calls >= completion.num_tokens
            searched += completion.language_calls > completion.num_tokens
    assert searched > 10, "hardly any proposal was refused: nothing is shown"


def test_a_search_depends_on_its_request_alone(language_dir, reward_dir):
    def complete(prompts, slots):
        decoder = Decoder.load(language_dir, reward_dir, "cards", slots=slots, **CASES["cards"])
        return decoder.generate(prompts, samples=2, max_new_tokens=LIMIT, seed=1)

    together = complete(PROMPTS, 8)
    assert complete(PROMPTS[3:4], 8) == together[3:4]
    assert complete(PROMPTS[::-1], 8) == together[::-1]


def test_best_of_one_is_the_language_model(language_dir, reward_dir):
    best = Decoder.load(language_dir, reward_dir, "best-of-n", proposals=1, slots=8)
    plain = Decoder.load(language_dir, reward_dir, "unguided", slots=8)
    first, second = (d.generate(PROMPTS, samples=2, max_new_tokens=8) for d in (best, plain))
    assert [[c.token_ids for c in row] for row in first] == [[c.token_ids for c in row] for row in second]


def proposal(reward, length=10):
    return Proposal([5] * length, [0.0] * (length - 1) + [reward], score=reward, logprob=0.0)


def test_the_threshold_of_cards_rises_from_between_prompt_and_target():
    draft = Draft(Segments("entropy", "threshold", 20, 64, target=8.0), max_new_tokens=100, prompt_reward=2.0)
    # r0 = (2 + 8) / 2 = 5; at 10 tokens tau = 5 + 10 * 3 / 100 = 5.3.
    assert draft.acceptance(proposal(5.3)) == 1.0
    assert draft.acceptance(proposal(5.3 - 0.7)) == pytest.approx(math.exp(-1))
    thresholds = [draft.acceptance(proposal(5.0, n)) for n in (1, 30, 60, 100)]
    assert all(a > b for a, b in pairwise(thresholds))
    above = Draft(Segments("entropy", "threshold", 20, 64, target=1.0), max_new_tokens=100, prompt_reward=9.0)
    assert above.acceptance(proposal(1.0)) == 1.0, "the threshold is never above the target"


def test_the_best_is_taken_when_nothing_was_good_enough():
    draft = Draft(Segments("length", "threshold", 3, 10, target=100.0), max_new_tokens=100)
    first, second, third = proposal(-1.0), proposal(2.0), proposal(1.0)
    assert [draft.judge(p, chance=0.5) for p in (first, second, third)] == ["retry", "retry", "best"]
    assert draft.best is second
    draft.advance(10)
    assert draft.best is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "pargs", "proposals": 3}, "'pargs' has no proposals"),
        ({"method": "best-of-n", "segment_tokens": 3}, "'best-of-n' has no segment_tokens"),
        ({"method": "cards"}, "needs a target_reward"),
        ({"method": "best-of-n", "reward": None}, "needs a reward model"),
    ],
)
def test_numbers_that_a_method_has_no_use_for(language_dir, reward_dir, options, said):
    with pytest.raises(UserError, match=said):
        Decoder.load(language_dir, options.pop("reward", reward_dir), **options)
