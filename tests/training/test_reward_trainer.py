"""One worker's training, against the same thing done the long way."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from rgtg.models.reward import RewardModel
from rgtg.preferences.tokenized import TokenizedPair, common_length
from rgtg.training.reward_trainer import RewardTrainer, by_length
from rgtg.training_settings import TrainReward
from tests.tolerance import ROUNDING, alike, assert_rounds_alike

EOS = 2


def make_pairs(n, seed=0, low=3, high=259, longest=9):
    """Pairs with prompts and responses of all lengths, some with a common beginning, some without EOS."""
    g = torch.Generator().manual_seed(seed)

    def draw(least, most):
        size = int(torch.randint(least, most + 1, (1,), generator=g))
        return torch.randint(low, high, (size,), generator=g).tolist()

    pairs = []
    for i in range(n):
        start = draw(1, 3) if i % 3 == 0 else []
        chosen, rejected = [*start, *draw(1, longest), EOS], [*start, *draw(1, longest), *([EOS] if i % 2 else [])]
        pairs.append(TokenizedPair([1, *draw(0, 6)], chosen, rejected, common_length(chosen, rejected)))
    return pairs


def learner(directory, num_steps=10, **settings):
    settings = {"learning_rate": 1e-3, "precision": "float32", **settings}
    settings = TrainReward(**settings)
    return RewardTrainer(
        RewardModel.load(directory, head=settings.head_kind), settings, num_steps, torch.device("cpu")
    )


def parameters(learner):
    return {name: value.detach().clone() for name, value in learner.reward_model.named_parameters()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=0, rtol=0, msg=name)


class CacheSlots:
    """The published way: every (pair, prefix) is two rows, each scored separately by plain transformers."""

    def __init__(self, classifier):
        classifier.config.pad_token_id = None
        self.classifier = classifier

    @torch.no_grad()
    def reward(self, ids):
        return self.classifier(input_ids=torch.tensor([ids])).logits[0, 0].double()

    def losses(self, pair, after_end, min_prefix):
        """-log sigmoid of every prefix that counts, in order."""
        found = []
        chosen, rejected = list(pair.chosen_ids), list(pair.rejected_ids)
        longer = max(len(chosen), len(rejected))
        if after_end == "eos":
            chosen, rejected = (ids + [EOS] * (longer - len(ids)) for ids in (chosen, rejected))
        for i in range(min_prefix, longer + 1):
            first, second = chosen[:i], rejected[:i]
            if first != second:
                margin = self.reward(pair.prompt_ids + first) - self.reward(pair.prompt_ids + second)
                found.append(-logsigmoid(margin).item())
        return found


@pytest.fixture(scope="module")
def rows(plain, reward_dir):
    return CacheSlots(plain(reward_dir))


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("after_end", ["hold", "eos"])
@pytest.mark.parametrize("average", ["prefix", "pair"])
@pytest.mark.parametrize("min_prefix", [1, 4])
def test_the_partial_loss_is_that_of_explicit_rows(rows, reward_dir, after_end, average, min_prefix):
    pairs = make_pairs(7)
    expected = [rows.losses(pair, after_end, min_prefix) for pair in pairs]
    assert min(map(len, expected)) < max(map(len, expected))
    counted = [losses for losses in expected if losses]
    value = mean(sum(counted, [])) if average == "prefix" else mean([mean(losses) for losses in counted])
    result = learner(reward_dir, after_end=after_end, average=average, min_prefix=min_prefix).train_step(pairs)
    assert result.loss == alike(value)
    assert result.prefixes == sum(map(len, expected))
    assert result.masked == sum(pair.common for pair in pairs) > 0
    assert result.pairs == 7


def test_the_two_averages_and_the_two_ends_differ(reward_dir):
    losses = {
        learner(reward_dir, after_end=after_end, average=average).train_step(make_pairs(7)).loss
        for after_end in ("hold", "eos")
        for average in ("prefix", "pair")
    }
    assert len(losses) == 4


def test_the_full_loss_compares_whole_responses(rows, reward_dir):
    pairs = make_pairs(7)
    expected = mean(
        [
            -logsigmoid(rows.reward(p.prompt_ids + p.chosen_ids) - rows.reward(p.prompt_ids + p.rejected_ids)).item()
            for p in pairs
        ]
    )
    for average in ("prefix", "pair"):
        result = learner(reward_dir, objective="full", average=average).train_step(pairs)
        assert result.loss == alike(expected)


def gradients_of_a_step(reward_dir, pairs, **settings):
    """What the optimizer sees, and the result."""
    it, seen = learner(reward_dir, **settings), {}

    def look(*_):
        seen.update({name: p.grad.clone() for name, p in it.reward_model.named_parameters()})

    it.distributed.optimizer.register_step_pre_hook(look)
    result = it.train_step(pairs)
    return seen, result


def test_pairs_of_a_length_share_a_forward():
    pairs = [TokenizedPair([1] * n, [2] * m, [3], 0) for n, m in ((5, 9), (4000, 50), (5, 1), (1000, 24), (2000, 40))]
    lengths = [[pair.length for pair in group] for group in by_length(pairs)]
    assert lengths == [[6, 14, 1024], [2040], [4050]], "at most 8,192 tokens with padding, or one pair"
    assert [[pair.length for pair in group] for group in by_length(pairs, 2)] == [[6, 14], [1024, 2040], [4050]]
    assert by_length([]) == []
    assert [len(group) for group in by_length(pairs[:4], multiple=2048)] == [2, 1, 1], "their width is rounded up"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"average": "pair"},
        {"after_end": "eos"},
        {"objective": "full"},
        {"objective": "rad"},
        {"objective": "fudge"},
        {"max_grad_norm": 1e9},
    ],
    ids=["prefix", "pair", "eos", "full", "rad", "fudge", "unclipped"],
)
def test_micro_batches_add_up_to_the_batch(reward_dir, settings):
    pairs = make_pairs(6)
    pairs.append(make_pairs(1, seed=3, longest=20)[0])  # an odd one, longer than all
    one, result = gradients_of_a_step(reward_dir, pairs, batch_size=8, **settings)
    many, accumulated = gradients_of_a_step(reward_dir, pairs, batch_size=8, micro_batch_size=2, **settings)
    assert_rounds_alike(many, one)  # the parameters say less: Adam divides by gradients that are all rounding
    assert accumulated.loss == pytest.approx(result.loss, rel=ROUNDING)
    assert accumulated.grad_norm == pytest.approx(result.grad_norm, rel=ROUNDING)
    assert (accumulated.pairs, accumulated.prefixes, accumulated.masked) == (
        result.pairs,
        result.prefixes,
        result.masked,
    )
    norm = math.sqrt(sum(float(g.square().sum()) for g in one.values()))
    assert norm == pytest.approx(min(result.grad_norm, settings.get("max_grad_norm", 1.0)), rel=ROUNDING)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"after_end": "eos"},
        *({"objective": objective} for objective in ("full", "rad", "fudge", "cd")),
        *({"objective": objective, "head": "next-token"} for objective in ("partial", "farma")),
        {"objective": "genarm"},
    ],
    ids=lambda settings: "-".join(settings.values()) or "partial",
)
def test_padding_changes_nothing_but_rounding(reward_dir, language_dir, settings, monkeypatch):
    """Rows are padded to widths of a few sizes on a GPU."""
    place = language_dir if {"head", "farma", "genarm"} & {*settings, *settings.values()} else reward_dir
    narrow, result = gradients_of_a_step(place, make_pairs(6), **settings)
    monkeypatch.setattr(RewardTrainer, "_width", lambda self, pairs: 64)
    wide, padded = gradients_of_a_step(place, make_pairs(6), **settings)
    assert_rounds_alike(wide, narrow)
    assert padded.loss == pytest.approx(result.loss, rel=ROUNDING)
    assert (padded.pairs, padded.prefixes, padded.masked) == (result.pairs, result.prefixes, result.masked)


def test_the_gradient_is_that_of_the_mean_loss(reward_dir):
    """Against autograd on the loss written out, in the model's own words: forward, gather, mean."""
    pairs = make_pairs(4)
    ours, _ = gradients_of_a_step(reward_dir, pairs, max_grad_norm=1e9)
    model, losses = RewardModel.load(reward_dir).train(), []
    for pair in pairs:
        sides = []
        for ids in (pair.chosen_ids, pair.rejected_ids):
            rewards = model(torch.tensor([pair.prompt_ids + ids]))[0][len(pair.prompt_ids) :]
            longer = max(len(pair.chosen_ids), len(pair.rejected_ids))
            sides.append(torch.cat([rewards, rewards[-1:].expand(longer - len(ids))]))
        losses.append(-logsigmoid(sides[0] - sides[1])[pair.common :])
    torch.cat(losses).mean().backward()
    assert_rounds_alike(ours, {name: p.grad for name, p in model.named_parameters()})


def test_a_step_without_pairs_is_a_step_without_a_gradient(reward_dir):
    """Of a worker that has run out of pairs: it must take part."""
    for objective in ("partial", "full"):
        gradients, result = gradients_of_a_step(reward_dir, [], objective=objective)
        assert all(gradient.abs().max() == 0 for gradient in gradients.values())
        assert result.loss == 0
        assert (result.pairs, result.prefixes, result.masked) == (0, 0, 0)


def test_bfloat16_is_of_the_forward_and_not_of_the_weights(reward_dir):
    exact, rough = (learner(reward_dir, precision=precision) for precision in ("float32", "bfloat16"))
    one, other = exact.train_step(make_pairs(6)).loss, rough.train_step(make_pairs(6)).loss
    assert one != other
    # Some eight roundings of bfloat16 one behind the other in two layers.
    assert one == pytest.approx(other, rel=8 * torch.finfo(torch.bfloat16).eps)
    assert {parameter.dtype for parameter in rough.reward_model.parameters()} == {torch.float32}


def toy_pairs(n, seed):
    """The token 100 is good and the token 200 is bad, wherever they are."""
    g = torch.Generator().manual_seed(seed)
    pairs = []
    for _ in range(n):
        words = torch.randint(3, 90, (2, 5), generator=g)
        at = int(torch.randint(5, (1,), generator=g))
        words[0, at], words[1, at] = 100, 200
        chosen, rejected = [*words[0].tolist(), EOS], [*words[1].tolist(), EOS]
        pairs.append(TokenizedPair([1], chosen, rejected, common_length(chosen, rejected)))
    return pairs


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "partial"},
        {"objective": "full"},
        {"objective": "partial", "head": "next-token"},
        {"objective": "full", "head": "next-token"},
        {"objective": "rad"},
        {"objective": "fudge"},
        {"objective": "farma"},
        {"objective": "genarm"},
    ],
    ids=lambda settings: "-".join(settings.values()),
)
def test_what_can_be_learned_is_learned(language_dir, settings):
    it = learner(language_dir, num_steps=40, learning_rate=1e-2, **settings)
    before = it.evaluate([toy_pairs(64, seed=99)])
    losses = [it.train_step(toy_pairs(32, seed)).loss for seed in range(40)]
    after = it.evaluate([toy_pairs(64, seed=99)])
    assert after["by_fraction"]["1.0"] > 0.9
    assert after["pairs"] == {"full": 64}
    assert mean(losses[-5:]) < mean(losses[:5])
    if settings["objective"] in ("partial", "full"):
        assert losses[0] == alike(math.log(2))  # the head of a new reward model is zero
        assert mean(losses[-5:]) < 0.75 * mean(losses[:5])
        assert before["by_fraction"]["1.0"] == 0.5  # all tied


def test_a_restored_learner_goes_on_identically(reward_dir, language_dir, tmp_path):
    batches = [make_pairs(4, seed) for seed in range(6)]
    through = learner(reward_dir, num_steps=6, weight_decay=0.1)
    results = [through.train_step(batch) for batch in batches]

    first = learner(reward_dir, num_steps=6, weight_decay=0.1)
    for batch in batches[:3]:
        first.train_step(batch)
    torch.save(first.state(), tmp_path / "learner.pt")
    state = torch.load(tmp_path / "learner.pt", weights_only=True, map_location="cpu")
    second = learner(language_dir, num_steps=6, weight_decay=0.1)  # other weights, to be replaced
    second.restore(state)
    assert second.step == 3
    assert [second.train_step(batch) for batch in batches[3:]] == results[3:]
    assert_same(parameters(second), parameters(through))


def test_taking_the_state_does_not_disturb_training(reward_dir):
    one, other = learner(reward_dir), learner(reward_dir)
    for seed in range(3):
        assert one.train_step(make_pairs(4, seed)) == other.train_step(make_pairs(4, seed))
        other.state()
    assert_same(parameters(one), parameters(other))


def test_the_state_saves_as_a_reward_model(reward_dir, tmp_path):
    it = learner(reward_dir)
    it.train_step(make_pairs(4))
    it.reward_model.save(tmp_path, it.state()["model"])
    saved = RewardModel.load(str(tmp_path))
    assert_same(parameters(it), {name: p.detach() for name, p in saved.named_parameters()})


def test_evaluation_leaves_the_model_as_it_is(reward_dir):
    it = learner(reward_dir)
    before = parameters(it)
    it.evaluate([make_pairs(4)])
    assert it.distributed.model.training
    assert_same(parameters(it), before)
    assert all(p.grad is None for p in it.reward_model.parameters())


def test_gradient_checkpointing_changes_memory_alone(reward_dir):
    plain, frugal = learner(reward_dir), learner(reward_dir, gradient_checkpointing=True)
    for _ in range(2):
        assert plain.train_step(make_pairs(6)) == frugal.train_step(make_pairs(6))
    assert_same(parameters(plain), parameters(frugal))
