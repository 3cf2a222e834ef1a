"""Rewards of siblings against re-scoring every candidate from scratch in plain transformers."""

import pytest
import torch

from rgtg.decoding.candidate_rewards import CandidateGuidance, EnsembleGuidance, NextTokenGuidance
from rgtg.decoding.request import Request
from rgtg.models.reward import RewardModel
from tests.tolerance import alike

EOS = 2
ALL = torch.ones(8, dtype=torch.bool)  # rows that run
PROMPTS = [[1], [1, 50, 60], [1, *range(100, 150)], [1, *range(40, 71)], [9] * 32]


def request(ids):
    return Request("", ids, ids, samples=1, max_new_tokens=1, seed=0)


@pytest.fixture(scope="module")
def classifier(plain, reward_dir):
    return plain(reward_dir)


@torch.no_grad()
def rescored(classifier, prefix, token):
    """transformers' pooled logit of one sequence of batch 1, without a cache."""
    row = torch.tensor([[*prefix, token]])
    return classifier(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0, 0].item()


def rewards_of(guidance, tokens):
    guidance.begin_step()
    return guidance.rewards(tokens)


def check(classifier, guidance, prefixes, tokens):
    rewards = rewards_of(guidance, tokens)
    for row, prefix in enumerate(prefixes):
        expected = [rescored(classifier, prefix, token) for token in tokens[row].tolist()]
        assert rewards[row].tolist() == alike(expected)
    assert rewards.std() > 0.5, "rewards that hardly differ show nothing"


@torch.inference_mode()
def test_rewards_of_siblings_as_rows_begin_go_on_and_are_taken_over(classifier, reward_dir):
    k, g = 6, torch.Generator().manual_seed(0)
    guidance = CandidateGuidance(RewardModel.load(reward_dir).eval(), len(PROMPTS), k)
    prefixes = [list(prompt) for prompt in PROMPTS]
    for row, prompt in enumerate(PROMPTS):
        guidance.reserve(len(prompt))
        guidance.start(row, request(prompt), [])

    def step():
        tokens = torch.stack([3 + torch.randperm(256, generator=g)[:k] for _ in prefixes])
        tokens[:, 2] = EOS
        check(classifier, guidance, prefixes, tokens)
        choice = torch.randint(k, (len(prefixes),), generator=g)
        guidance.commit(choice, ALL[: len(choice)])
        for row, prefix in enumerate(prefixes):
            prefix.append(tokens[row, choice[row]].item())

    for _ in range(3):
        guidance.reserve(max(map(len, prefixes)) + 1)
        step()
    # Row 0 begins the prompt of row 2 while row 2 is far beyond it; row 3 begins a longer one than before.
    guidance.start(0, request(PROMPTS[2]), [])
    prefixes[0] = list(PROMPTS[2])
    guidance.reserve(80)
    guidance.start(3, request([1, *range(5, 75)]), [])
    prefixes[3] = [1, *range(5, 75)]
    step()
    guidance.reserve(200)  # growing keeps what is there
    step()
    step()
    # An idle row is computed with the others and disturbs none.
    guidance.release(1)
    prefixes[1] = []
    step()


@torch.inference_mode()
def test_the_whole_vocabulary_as_candidates(classifier, reward_dir):
    guidance = CandidateGuidance(RewardModel.load(reward_dir).eval(), 1, 256)
    guidance.reserve(3)
    guidance.start(0, request([1, 50, 60]), [])
    check(classifier, guidance, [[1, 50, 60]], torch.arange(3, 259)[None])


@torch.inference_mode()
@pytest.mark.parametrize("arch", ["gpt2", "qwen2", "qwen3"])
def test_other_architectures(make_reward, plain, arch):
    directory = make_reward(arch=arch)
    guidance = CandidateGuidance(RewardModel.load(directory).eval(), 2, 5)
    prefixes = [[1], [1, *range(100, 140)]]
    guidance.reserve(41)
    for row, prompt in enumerate(prefixes):
        guidance.start(row, request(prompt), [])
    check(plain(directory), guidance, prefixes, torch.tensor([[EOS, 30, 40, 50, 60], [31, 41, EOS, 61, 71]]))


@torch.inference_mode()
def test_eos_is_scored_at_its_own_position_where_it_is_also_the_padding(make_reward, make_tokenizer, plain):
    """transformers' pooled logit skips an EOS that is the padding, and returns the reward before it."""
    directory = make_reward(make_tokenizer(pad="</s>"))
    classifier = plain(directory)
    guidance = CandidateGuidance(RewardModel.load(directory).eval(), 1, 2)
    guidance.reserve(3)
    guidance.start(0, request([1, 50, 60]), [])
    eos, other = rewards_of(guidance, torch.tensor([[EOS, 70]]))[0].tolist()
    hidden = classifier.model(torch.tensor([[1, 50, 60, EOS]])).last_hidden_state
    assert eos == alike(classifier.score(hidden)[0, -1, 0].item())
    assert abs(eos - classifier.score(hidden)[0, -2, 0].item()) > 0.1
    assert other == alike(rescored(classifier, [1, 50, 60], 70))


@torch.inference_mode()
def test_going_back_gives_each_member_of_an_ensemble_its_own_reward(make_language):
    """Rewards that add up along a text go on from the member's own, not from what all of them came to."""
    models = [RewardModel.load(make_language(seed=seed), head="log-probability").eval() for seed in (1, 2)]
    tokens = torch.tensor([[60, 70, 80], [90, 100, 110]])

    def begun():
        guidance = EnsembleGuidance([NextTokenGuidance(model, 2) for model in models], "min", 1.0)
        guidance.reserve(20)
        for row in range(2):
            guidance.start(row, request([1, 50]), [])
        rewards_of(guidance, tokens)
        guidance.commit(torch.tensor([1, 2]), ALL[:2])
        return guidance

    expected = rewards_of(begun(), tokens + 5)
    guidance = begun()
    for _ in range(2):
        rewards_of(guidance, tokens + 3)
        guidance.commit(torch.tensor([0, 1]), ALL[:2])
    guidance.rewind(0, request([1, 50]), [70])
    assert torch.equal(rewards_of(guidance, tokens + 5)[0], expected[0])


@torch.inference_mode()
@pytest.mark.parametrize("head", ["scalar", "next-token", "log-probability"])
def test_a_row_that_does_not_run_stays_where_it_is(reward_dir, make_language, head):
    if head == "scalar":
        guidance = CandidateGuidance(RewardModel.load(reward_dir).eval(), 2, 3)
    else:
        model = RewardModel.load(make_language(), head=head).eval()
        torch.nn.init.normal_(model.head.weight)  # a new one gives no rewards yet
        guidance = NextTokenGuidance(model, 2)
    guidance.reserve(20)
    for row in range(2):
        guidance.start(row, request([1, 50]), [])
    tokens = torch.tensor([[60, 70, 80], [90, 100, 110]])
    first = rewards_of(guidance, tokens)
    guidance.commit(torch.tensor([1, 2]), torch.tensor([True, False]))
    # What it was given is not taken over, but it is read where the next one will stand.
    second = rewards_of(guidance, tokens)
    assert not torch.equal(second[0], first[0])
    guidance.rewind(1, request([1, 50]), [])
    assert torch.equal(rewards_of(guidance, tokens)[1], first[1])
