"""The token rule's pure functions: candidates, choice, noise."""

import math
from itertools import product

import pytest
import torch
from scipy import stats

from rgtg.decoding.token_rule import Rule, candidates, choose, gumbel, row_key
from tests.tolerance import assert_alike

EULER_GAMMA = 0.5772156649015329

# Pinned: another value would change every completion of a resumed run. Computed apart, in Python integers.
PINNED_KEY, PINNED_NOISE = 6774360580613618947, 0.35758972284531626


@pytest.fixture(scope="module")
def noise():
    """400 row keys x 5 steps x 50 tokens."""
    keys = torch.tensor([row_key(0, f"prompt {i}", i % 4) for i in range(400)])
    tokens = torch.arange(50).expand(400, -1)
    return torch.stack([gumbel(keys, torch.full((400,), step), tokens) for step in range(5)], 1)


def test_noise_is_standard_gumbel(noise):
    assert noise.dtype == torch.float64
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(EULER_GAMMA, abs=4 * math.pi / math.sqrt(6 * noise.numel()))
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.03)
    assert stats.kstest(noise.flatten().numpy(), stats.gumbel_r.cdf).pvalue > 1e-4


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["keys", "steps", "tokens"])
def test_noise_of_neighbours_is_uncorrelated(noise, axis):
    # Consecutive steps, tokens and rows are the ones that a weak hash would tie together.
    uniform = torch.exp(-torch.exp(-noise))
    n = uniform.shape[axis] - 1
    first, second = uniform.narrow(axis, 0, n).flatten(), uniform.narrow(axis, 1, n).flatten()
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1].item()
    assert abs(correlation) < 4 / math.sqrt(len(first))
    # A 4 x 4 table sees dependence that correlation does not.
    cells = (first * 4).long() * 4 + (second * 4).long()
    assert stats.chisquare(torch.bincount(cells, minlength=16).numpy()).pvalue > 1e-4


def test_noise_has_no_repeats(noise):
    assert len(noise.flatten().unique()) == noise.numel()


def test_noise_depends_on_key_step_and_token_alone():
    keys, steps = torch.tensor([row_key(1, "a", 0), row_key(1, "b", 0)]), torch.tensor([3, 7])
    tokens = torch.tensor([[5, 9, 2], [9, 2, 40]])
    both = gumbel(keys, steps, tokens)
    for row in range(2):
        alone = gumbel(keys[row : row + 1], steps[row : row + 1], tokens[row : row + 1].flip(1))
        assert torch.equal(alone.flip(1)[0], both[row])  # neither the other rows nor the rank of a token matter
    assert both[0, 1] != gumbel(keys[:1], steps[:1] + 1, tokens[:1])[0, 1]
    assert both[0, 1] != gumbel(keys[1:], steps[:1], tokens[:1])[0, 1]


def test_row_keys_tell_seed_prompt_and_sample_apart():
    keys = [row_key(*parts) for parts in product((0, 1, 11), ("p", "1/p", "", "\ud800"), (0, 1, 11))]
    assert len(set(keys)) == len(keys)
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert row_key(3, "prompt", 2) == row_key(3, "prompt", 2)


def test_noise_is_the_same_in_every_version():
    assert row_key(0, "prompt", 0) == PINNED_KEY
    noise = gumbel(torch.tensor([PINNED_KEY]), torch.tensor([4]), torch.tensor([[17]]))
    assert noise.item() == pytest.approx(PINNED_NOISE, abs=1e-12)


def test_candidates_are_the_most_probable_with_their_log_probability():
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * 3
    logprobs, tokens = candidates(logits, 7)
    full = logits.double().log_softmax(-1)
    for row in range(6):
        assert set(tokens[row].tolist()) == set(full[row].argsort(descending=True)[:7].tolist())
    assert_alike(logprobs.double(), full.gather(1, tokens))
    everything, all_tokens = candidates(logits, 0)
    assert all_tokens.sort(-1).values.tolist() == [list(range(40))] * 6
    torch.testing.assert_close(everything.exp().sum(-1), torch.ones(6))
    assert candidates(logits, 100)[1].shape == (6, 40)


def test_candidates_of_half_precision_are_computed_in_float32():
    logits = torch.randn(2, 500, generator=torch.Generator().manual_seed(0)).bfloat16()
    logprobs, tokens = candidates(logits, 500)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, logits.float().log_softmax(-1).gather(1, tokens))


def test_choose_takes_the_argmax_and_reports_both_probabilities():
    g = torch.Generator().manual_seed(1)
    logprobs = torch.randn(50, 8, generator=g).log_softmax(-1) - 0.3  # candidates of a larger vocabulary
    rewards, noise = torch.randn(50, 8, generator=g), torch.randn(50, 8, generator=g).double()
    tilted = logprobs.double() + 1.7 * rewards.double()
    sampled = choose(logprobs, rewards, Rule(1.7, 8), noise)
    assert torch.equal(sampled.candidate, (tilted + noise).argmax(-1))
    at = sampled.candidate[:, None]
    assert torch.equal(sampled.logprob, logprobs.gather(1, at)[:, 0])
    torch.testing.assert_close(sampled.guided_logprob, tilted.log_softmax(-1).gather(1, at)[:, 0])
    greedy = choose(logprobs, rewards, Rule(1.7, 8), None)
    assert torch.equal(greedy.candidate, tilted.argmax(-1))
    assert greedy.guided_logprob.tolist() == [0.0] * 50
    unguided = choose(logprobs, None, Rule(1.7, 8), noise)
    assert torch.equal(unguided.candidate, (logprobs + noise).argmax(-1))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("greedy", [True, False])
def test_a_candidate_without_a_finite_reward_is_never_chosen(bad, greedy):
    logprobs = torch.tensor([[0.9, 0.08, 0.02]]).log().expand(200, -1)
    rewards = torch.tensor([[bad, 0.0, 0.5]]).expand(200, -1)
    noise = (
        None if greedy else gumbel(torch.arange(200) * 7919, torch.zeros(200).long(), torch.arange(3).expand(200, -1))
    )
    choice = choose(logprobs, rewards, Rule(1.0, 3), noise)
    assert 0 not in choice.candidate
    assert choice.logprob.isfinite().all()
    assert choice.guided_logprob.isfinite().all()
    if not greedy:
        assert set(choice.candidate.tolist()) == {1, 2}
        pi = torch.tensor([0.08, 0.02 * math.exp(0.5)]).log().log_softmax(0).double()
        assert_alike(choice.guided_logprob, pi[choice.candidate - 1])


@pytest.mark.parametrize("greedy", [True, False])
def test_where_no_reward_is_finite_the_choice_says_so(greedy):
    """The engine fails such a row by the probabilities it gets; an arbitrary token must not pass for a choice."""
    logprobs = torch.tensor([[0.5, 0.3], [0.5, 0.3]]).log()
    rewards = torch.tensor([[math.nan, math.inf], [1.0, 2.0]])
    choice = choose(logprobs, rewards, Rule(1.0, 3), None if greedy else torch.zeros(2, 2).double())
    finite = choice.logprob.isfinite() & choice.guided_logprob.isfinite()
    assert finite.tolist() == [False, True]


def test_top_p_keeps_the_most_probable_candidates_and_always_one():
    logprobs = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    force = torch.eye(4, dtype=torch.float64) * 1e9
    for top_p, temperature, kept in ((0.79, 1.0, 2), (0.81, 1.0, 3), (1e-9, 1.0, 1), (1.0, 1.0, 4), (0.79, 3.0, 3)):
        rule = Rule(0.0, 4, temperature=temperature, top_p=top_p)
        choice = choose(logprobs.expand(4, -1), None, rule, force)
        probs = (logprobs[0, :kept].double() / temperature).softmax(-1)
        torch.testing.assert_close(choice.guided_logprob.exp()[:kept], probs)
        assert set(choice.candidate.tolist()) == set(range(kept))
