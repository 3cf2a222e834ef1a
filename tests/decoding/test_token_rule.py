"""What the decoder samples is the tilted policy: exact distributions over a vocabulary small enough to enumerate."""

from collections import Counter
from itertools import product

import pytest
import torch
from scipy import stats

from rgtg.decoding.decoder import Decoder
from rgtg.decoding.token_rule import Rule, choose
from tests.tolerance import alike

PROMPT = "abca"
SAMPLES = 6000


@pytest.fixture(scope="module")
def oracle(plain, toy_language_dir, toy_reward_dir):
    """Log-probabilities (V,) of the next token, and rewards (V,) of the prefix with each one, in float64."""
    language, classifier = plain(toy_language_dir).double(), plain(toy_reward_dir).double()

    @torch.no_grad()
    def at(ids):
        logprobs = language(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        size = len(logprobs)
        rows = torch.cat([torch.tensor([ids]).expand(size, -1), torch.arange(size)[:, None]], 1)
        # Not the pooled logit, which would look for padding: one of the twelve tokens is <pad>.
        rewards = classifier.score(classifier.model(rows).last_hidden_state)[:, -1, 0]
        return logprobs, rewards

    return at


def exact_policy(logprobs, rewards, beta, k):
    """pi (V,) of the token rule, zero outside the top-k tokens."""
    kept = logprobs.argsort(descending=True)[: k or len(logprobs)]
    policy = torch.zeros_like(logprobs)
    policy[kept] = (logprobs + beta * rewards)[kept].softmax(-1)
    return policy


def p_value(tokens, policy):
    """Chi-square of sampled tokens against a policy (V,), tokens expected fewer than 5 times taken together."""
    observed = torch.bincount(torch.tensor(tokens), minlength=len(policy)).double()
    assert observed[policy == 0].sum() == 0, "a token outside the candidates was sampled"
    expected = policy * len(tokens)
    rare = expected < 5
    cells = [(observed[i].item(), expected[i].item()) for i in range(len(policy)) if not rare[i]]
    if expected[rare].sum() > 0:
        cells.append((observed[rare].sum().item(), expected[rare].sum().item()))
    assert len(cells) > 2, "the policy is too peaked to test anything"
    return stats.chisquare(*zip(*cells, strict=True)).pvalue


@pytest.mark.parametrize(("k", "beta"), [(5, 0.8), (0, 0.8), (0, 0.3)])
def test_sampled_tokens_follow_the_tilted_policy(oracle, toy_tokenizer, toy_language_dir, toy_reward_dir, k, beta):
    decoder = Decoder.load(toy_language_dir, toy_reward_dir, "pargs", k=k, beta=beta, slots=256)
    completions = decoder.generate([PROMPT], samples=SAMPLES, max_new_tokens=2, seed=5)[0]
    prompt_ids = toy_tokenizer(PROMPT).input_ids

    policy = exact_policy(*oracle(prompt_ids), beta, k)
    untilted = exact_policy(*oracle(prompt_ids), 0.0, k)
    firsts = [c.token_ids[0] for c in completions]
    assert p_value(firsts, policy) > 1e-4
    assert p_value(firsts, untilted) < 1e-6, "the reward makes too little difference for this test to see it"

    first = Counter(token for token in firsts if token != toy_tokenizer.eos_token_id).most_common(1)[0][0]
    seconds = [c.token_ids[1] for c in completions if c.token_ids[0] == first]
    assert len(seconds) > 500
    assert p_value(seconds, exact_policy(*oracle([*prompt_ids, first]), beta, k)) > 1e-4


def test_reported_probabilities_are_those_of_the_policy(oracle, toy_tokenizer, toy_language_dir, toy_reward_dir):
    decoder = Decoder.load(toy_language_dir, toy_reward_dir, "pargs", k=5, beta=0.8, slots=8)
    for completion in decoder.generate([PROMPT], samples=20, max_new_tokens=6)[0]:
        ids, logprob, guided = toy_tokenizer(PROMPT).input_ids, 0.0, 0.0
        for token in completion.token_ids:
            logprobs, rewards = oracle(ids)
            logprob += logprobs[token].item()
            guided += exact_policy(logprobs, rewards, 0.8, 5)[token].log().item()
            ids = [*ids, token]
        assert completion.logprob == alike(logprob)
        assert completion.guided_logprob == alike(guided)


@pytest.mark.parametrize("k", [4, 0])
def test_beta_zero_is_the_language_model_restricted_to_its_candidates(
    oracle, toy_tokenizer, toy_language_dir, toy_reward_dir, k
):
    guided = Decoder.load(toy_language_dir, toy_reward_dir, "pargs", k=k, beta=0.0, slots=64)
    alone = Decoder.load(toy_language_dir, None, "unguided", k=k, slots=64)
    prompts = [PROMPT, "", "ihg"]
    ours, theirs = (d.generate(prompts, samples=50, max_new_tokens=5, seed=1) for d in (guided, alone))
    for one, other in zip(sum(ours, []), sum(theirs, []), strict=True):
        assert one.token_ids == other.token_ids
        assert one.guided_logprob == pytest.approx(other.guided_logprob, abs=1e-9)
        assert other.reward is None
        assert other.token_rewards is None
    firsts = [c.token_ids[0] for c in alone.generate([PROMPT], samples=3000, max_new_tokens=1, seed=2)[0]]
    assert p_value(firsts, exact_policy(*oracle(toy_tokenizer(PROMPT).input_ids), 0.0, k)) > 1e-4


@pytest.mark.parametrize("method", ["pargs", "pargs-greedy", "args", "unguided"])
def test_one_candidate_is_the_greedy_language_model(oracle, toy_tokenizer, toy_language_dir, toy_reward_dir, method):
    decoder = Decoder.load(toy_language_dir, toy_reward_dir, method, k=1, beta=100.0, slots=8)
    prompts = ["a", "bb", "ihgfedcba"]
    for prompt, row in zip(prompts, decoder.generate(prompts, samples=2, max_new_tokens=8), strict=True):
        ids = toy_tokenizer(prompt).input_ids
        expected = []
        while len(expected) < 8 and toy_tokenizer.eos_token_id not in expected:
            expected.append(int(oracle(ids + expected)[0].argmax()))
        for completion in row:
            assert completion.token_ids == expected
            assert completion.guided_logprob == 0.0


@pytest.mark.parametrize("method", ["pargs", "pargs-greedy", "args"])
def test_a_large_beta_takes_the_best_reward_among_the_candidates(
    oracle, toy_tokenizer, toy_language_dir, toy_reward_dir, method
):
    decoder = Decoder.load(toy_language_dir, toy_reward_dir, method, k=4, beta=1e6, slots=8)
    for prompt in ("a", "bb", "ihgfedcba"):
        ids = toy_tokenizer(prompt).input_ids
        for completion in decoder.generate([prompt], samples=2, max_new_tokens=8)[0]:
            for i, token in enumerate(completion.token_ids):
                logprobs, rewards = oracle(ids + completion.token_ids[:i])
                among = logprobs.argsort(descending=True)[:4]
                assert token == among[rewards[among].argmax()]


def token_policy(logprobs, rewards, beta):
    """pi (V,) as `choose` computes it, read off by noise that forces each choice in turn."""
    size = len(logprobs)
    force = torch.eye(size, dtype=torch.float64) * 1e9
    choice = choose(logprobs.expand(size, -1), rewards.expand(size, -1), Rule(beta, size), force)
    assert choice.candidate.tolist() == list(range(size))
    return choice.guided_logprob.exp()


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_the_policy_is_the_ratio_of_two_tilted_prefix_distributions(oracle, toy_tokenizer, beta):
    """pi(v | y) = c(y) * pi_i(y v) / pi_(i-1)(y), with pi_i(y) = p(y) exp(beta r(y)) / Z_i (methods.md 2.5)."""
    prompt, vocabulary, length = toy_tokenizer(PROMPT).input_ids, range(12), 3
    log_p, reward, policy = {(): 0.0}, {}, {}
    for size in range(length):
        for prefix in product(vocabulary, repeat=size):
            logprobs, rewards = oracle([*prompt, *prefix])
            policy[prefix] = token_policy(logprobs, rewards, beta)
            for v in vocabulary:
                log_p[*prefix, v], reward[*prefix, v] = log_p[prefix] + logprobs[v].item(), rewards[v].item()

    tilted = {}
    for size in range(1, length + 1):
        prefixes = list(product(vocabulary, repeat=size))
        scores = torch.tensor([log_p[y] + beta * reward[y] for y in prefixes], dtype=torch.float64)
        tilted.update(zip(prefixes, scores.softmax(0), strict=True))
    for prefix in product(vocabulary, repeat=length - 1):
        ratio = torch.stack([tilted[*prefix, v] for v in vocabulary]) / tilted[prefix]
        torch.testing.assert_close(policy[prefix], ratio / ratio.sum(), atol=1e-12, rtol=1e-9)
