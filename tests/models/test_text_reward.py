"""TextReward against plain transformers, one text at a time."""

import pytest
import torch

from rgtg.errors import UserError
from rgtg.models.text_reward import TextReward
from tests.tolerance import alike

PROMPTS = ["hello", "", "a longer prompt: "]
COMPLETIONS = [" there", "x", "and what follows it, at length"]


@torch.no_grad()
def alone(model, tokenizer, text):
    return model(**tokenizer(text, return_tensors="pt")).logits[0].double()


@pytest.mark.parametrize("arch", ["bert", "llama", "gpt2"])
def test_rewards_are_those_of_every_text_alone(make_reward, make_tokenizer, plain, tokenizer_of, arch):
    place = make_reward(make_tokenizer("abcdefghilnoprtuwx ,:"), arch=arch)
    model, tokenizer = plain(place), tokenizer_of(place)
    rewards = TextReward.load(place, what="judge").score(PROMPTS, COMPLETIONS)
    expected = [alone(model, tokenizer, p + c).item() for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert rewards == alike(expected)
    assert max(rewards) - min(rewards) > 0.1


def test_a_finished_text_is_scored_at_its_end_where_padding_is_the_eos(
    make_reward, make_tokenizer, plain, tokenizer_of
):
    """transformers' pooling takes the last token that is no padding, which here is the one before."""
    place = make_reward(make_tokenizer(pad="</s>"))
    reward = TextReward.load(place, what="judge")
    ids = tokenizer_of(place)("text</s>", return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = plain(place).base_model(ids).last_hidden_state
        expected = plain(place).score(hidden)[0, -1, 0].item()
    assert reward.score(["text"], ["</s>"]) == [alike(expected)]


def test_two_labels_are_the_second_over_the_first(make_reward, plain, tokenizer_of):
    place = make_reward(arch="bert", num_labels=2)
    logits = alone(plain(place), tokenizer_of(place), "some text")
    rewards = TextReward.load(place, what="judge").score(["some "], ["text"])
    assert rewards == [alike((logits[1] - logits[0]).item())]


def test_of_a_text_beyond_the_context_the_end_counts(make_reward, plain):
    place = make_reward(arch="bert", max_position_embeddings=16)
    reward = TextReward.load(place, what="judge")
    with torch.no_grad():
        ids = reward.tokenizer("x" * 40 + "the end counts").input_ids
        ids = torch.tensor([[ids[0], *ids[-15:]]])  # and the token that opens a text, which encoders pool
        expected = plain(place)(ids).logits[0, 0].item()
    assert reward.score(["x" * 40], ["the end counts"]) == [alike(expected)]


def test_messages_are_read_by_its_own_template(make_reward, make_tokenizer):
    place = make_reward(make_tokenizer(template="{% for m in messages %}<{{ m.content }}>{% endfor %}"), arch="bert")
    reward = TextReward.load(place, what="judge")
    assert reward.score([[{"role": "user", "content": "hi"}]], ["there"]) == reward.score(["<hi>"], ["there"])
    twice = make_reward(
        make_tokenizer(template="<s>{% for m in messages %}<{{ m.content }}>{% endfor %}"), arch="bert"
    )
    both = TextReward.load(twice, what="judge")
    assert both.score([[{"role": "user", "content": "hi"}]], ["there"]) == both.score(["<hi>"], ["there"])


def test_what_is_no_classifier(language_dir, make_reward):
    with pytest.raises(UserError, match=r"judge: .* LlamaForCausalLM"):
        TextReward.check(language_dir, "judge")
    with pytest.raises(UserError, match="with 3 labels"):
        TextReward.check(make_reward(num_labels=3), "judge")
