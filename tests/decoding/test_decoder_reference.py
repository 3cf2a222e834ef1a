"""The decoder against the plainest loop there is: plain transformers, batch of one, no cache, candidates re-scored.

Only the noise is shared. Slots, refill, forks, sibling attention and packed heads must not be seen in what comes out.
"""

import math
from dataclasses import dataclass, field

import pytest
import torch

from rgtg.chat import prompt_id
from rgtg.decoding.decoder import Decoder
from rgtg.decoding.token_rule import gumbel, row_key
from rgtg.methods import METHODS
from tests.tolerance import alike

PROMPTS = ["hello there", "", "The prompt that is longer than one view of 32 slots.", "x", "abc", "twelve chars", "!?"]


@dataclass
class Reference:
    language: torch.nn.Module
    classifier: torch.nn.Module
    eos_id: int
    memory: dict = field(default_factory=dict)

    @torch.no_grad()
    def logprobs(self, ids):
        if ("p", *ids) not in self.memory:
            logits = self.language(torch.tensor([ids]), use_cache=False).logits[0, -1]
            self.memory["p", *ids] = logits.double().log_softmax(-1)
        return self.memory["p", *ids]

    @torch.no_grad()
    def reward(self, prompt_ids, response_ids):
        ids = prompt_ids + response_ids
        if ("r", *ids) not in self.memory:
            row = torch.tensor([ids])
            self.memory["r", *ids] = self.classifier(row, attention_mask=torch.ones_like(row)).logits[0, 0].item()
        return self.memory["r", *ids]

    def transformed(self, reward, transform):
        """As the papers write it."""
        if transform == "logsigmoid":
            return -math.log1p(math.exp(-reward))
        return min(max(reward, 0.0), 1.0) if transform == "clamp" else reward

    def complete(self, prompt_ids, reward_prompt_ids, key, method, rule, max_new_tokens):
        """Token ids, token rewards, logprob and guided_logprob of one completion."""
        preset, ids, rewards, total, guided = METHODS[method], [], [], 0.0, 0.0
        while len(ids) < max_new_tokens and self.eos_id not in ids:
            prefix = prompt_ids + ids
            logprobs = self.logprobs(prefix)
            among = logprobs.argsort(descending=True)[: rule.k]
            tilted = logprobs[among].clone()
            if preset.guidance != "none":
                seen = [
                    self.transformed(self.reward(reward_prompt_ids, [*ids, v]), preset.reward_transform)
                    for v in among.tolist()
                ]
                tilted += rule.beta * torch.tensor(seen)
            tilted /= rule.temperature
            mass = 0.0
            for rank, p in enumerate((logprobs[among] / rule.temperature).softmax(-1).tolist()):
                if rank and mass >= rule.top_p:
                    tilted[rank] = -math.inf
                mass += p
            if preset.greedy:
                choice = tilted.argmax()
            else:
                noise = gumbel(torch.tensor([key]), torch.tensor([len(ids)]), among[None])[0]
                choice = (tilted + noise).argmax()
                guided += tilted.log_softmax(-1)[choice].item()
            total += logprobs[among[choice]].item()
            ids.append(among[choice].item())
            rewards.append(self.reward(reward_prompt_ids, ids))
        return ids, rewards, total, guided


def compare(reference, decoder, tokenizer, prompts, *, samples, max_new_tokens, seed, texts=None):
    """Every completion of `decoder` against the reference; how they finished.

    `texts` are the prompts as the language model and as the reward model reads them, where they are not the same.
    """
    rule, finished = decoder.engine.rule, []
    outcome = decoder.generate(prompts, samples=samples, max_new_tokens=max_new_tokens, seed=seed)
    for prompt, text, row in zip(prompts, texts or [(p, p) for p in prompts], outcome, strict=True):
        for sample, completion in enumerate(row):
            ids, rewards, logprob, guided = reference.complete(
                *(tokenizer(side).input_ids for side in text),
                row_key(seed, prompt_id(prompt), sample),
                decoder.method,
                rule,
                max_new_tokens,
            )
            assert completion.token_ids == ids
            assert completion.token_rewards == alike(rewards)
            assert completion.reward == completion.token_rewards[-1]
            assert completion.num_tokens == len(ids)
            assert completion.logprob == alike(logprob)
            assert completion.guided_logprob == alike(guided)
            assert completion.finish_reason == ("stop" if ids[-1] == reference.eos_id else "length")
            finished.append(completion.finish_reason)
    return finished


def without_padding(classifier):
    """A classifier whose logit is the last token's, whichever it is: random models choose <pad> as they do others."""
    classifier.config.pad_token_id = None
    return classifier


@pytest.fixture(scope="module")
def reference(plain, tokenizer_of, language_dir, reward_dir):
    return Reference(plain(language_dir), without_padding(plain(reward_dir)), tokenizer_of(language_dir).eos_token_id)


@pytest.mark.parametrize("method", ["pargs", "pargs-greedy", "args", "unguided"])
def test_tokens_rewards_and_probabilities_of_every_method(reference, tokenizer_of, language_dir, reward_dir, method):
    decoder = Decoder.load(language_dir, reward_dir, method, k=6, slots=5)
    finished = compare(reference, decoder, tokenizer_of(language_dir), PROMPTS, samples=3, max_new_tokens=12, seed=3)
    # 21 sequences on 8 rows or fewer, some of which end early: rows are refilled and forked at different times.
    assert len(finished) == 21 > 2 * decoder.engine.slots
    assert {"stop", "length"} == set(finished)


@pytest.mark.parametrize("method", ["unguided", "pargs", "rad", "fudge", "cd"])
def test_temperature_top_p_and_readings(reference, tokenizer_of, language_dir, reward_dir, method):
    decoder = Decoder.load(language_dir, reward_dir, method, k=6, beta=1.5, temperature=1.7, top_p=0.8, slots=8)
    compare(reference, decoder, tokenizer_of(language_dir), PROMPTS[:4], samples=2, max_new_tokens=8, seed=3)


@dataclass
class NextTokenReference(Reference):
    """Rewards of next tokens by the definition: a logit one position earlier, or log-probabilities summed."""

    @torch.no_grad()
    def reward(self, prompt_ids, response_ids):
        rows = self.classifier(torch.tensor([prompt_ids + response_ids]), use_cache=False).logits[0].double()
        before = range(len(prompt_ids) - 1, len(prompt_ids) + len(response_ids) - 1)
        if self.classifier.config.rgtg_reward_head == "next-token":
            return rows[before[-1], response_ids[-1]].item()
        return sum(rows[i].log_softmax(-1)[v].item() for i, v in zip(before, response_ids, strict=True))


@pytest.mark.parametrize(("method", "head"), [("farma", "next-token"), ("genarm", "log-probability")])
def test_methods_that_read_the_reward_of_every_next_token(
    reference, make_language, plain, tokenizer_of, language_dir, method, head
):
    reward_dir = make_language(seed=9, arch="qwen2", rgtg_reward_head=head)
    other = NextTokenReference(reference.language, plain(reward_dir), reference.eos_id)
    decoder = Decoder.load(language_dir, reward_dir, method, k=6, slots=5)
    finished = compare(other, decoder, tokenizer_of(language_dir), PROMPTS, samples=3, max_new_tokens=10, seed=3)
    assert {"stop", "length"} == set(finished)
    scored = decoder.score(PROMPTS[:2], ["some text", "other"])
    for prompt, text, rewards in zip(PROMPTS, ("some text", "other"), scored, strict=False):
        prompt_ids = tokenizer_of(language_dir)(prompt).input_ids
        ids = tokenizer_of(language_dir)(text, add_special_tokens=False).input_ids
        expected = [other.reward(prompt_ids, ids[: i + 1]) for i in range(len(ids))]
        assert rewards == alike(expected)


def test_a_single_slot_decodes_one_after_the_other(reference, tokenizer_of, language_dir, reward_dir):
    decoder = Decoder.load(language_dir, reward_dir, "pargs", k=4, beta=1.0, slots=1)
    compare(reference, decoder, tokenizer_of(language_dir), PROMPTS[:3], samples=2, max_new_tokens=6, seed=4)


@pytest.mark.parametrize("arch", ["gpt2", "qwen2", "qwen3"])
def test_other_architectures(make_language, make_reward, plain, tokenizer_of, arch):
    language_dir, reward_dir = make_language(arch=arch, seed=6), make_reward(arch=arch, seed=7)
    tokenizer = tokenizer_of(language_dir)
    reference = Reference(plain(language_dir), without_padding(plain(reward_dir)), tokenizer.eos_token_id)
    decoder = Decoder.load(language_dir, reward_dir, "pargs", k=4, slots=3)
    compare(reference, decoder, tokenizer, PROMPTS[:5], samples=2, max_new_tokens=8, seed=5)


def test_a_reward_model_of_another_architecture_and_size(reference, make_reward, plain, tokenizer_of, language_dir):
    reward_dir = make_reward(arch="qwen3", num_hidden_layers=3, hidden_size=16)
    other = Reference(reference.language, without_padding(plain(reward_dir)), reference.eos_id)
    decoder = Decoder.load(language_dir, reward_dir, "pargs", k=4, slots=3)
    compare(other, decoder, tokenizer_of(language_dir), PROMPTS[:3], samples=2, max_new_tokens=8, seed=5)


def test_a_reward_model_with_a_chat_template_of_its_own(
    reference, make_reward, make_tokenizer, plain, tokenizer_of, language_dir
):
    """The prompt is longer in one model than in the other, and each keeps its own positions."""
    template = "<s>{% for m in messages %}Judge what follows: {{ m.content }}{% endfor %}"
    reward_dir = make_reward(make_tokenizer(template=template), seed=8)
    other = Reference(reference.language, without_padding(plain(reward_dir)), reference.eos_id)
    decoder = Decoder.load(language_dir, reward_dir, "pargs", k=4, slots=3)
    contents = ["hi", "a longer message than that", "x", "y"]
    compare(
        other,
        decoder,
        tokenizer_of(language_dir),
        [[{"role": "user", "content": content}] for content in contents],
        samples=3,
        max_new_tokens=8,
        seed=6,
        texts=[(f"u:{content};a:", f"Judge what follows: {content}") for content in contents],
    )
