"""Steps of a completion: they make up its text, and each ends where a token does."""

from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rgtg.chat import decode_response
from rgtg.preferences.steps import Step, stepped, steps_of, token_ends
from tests.conftest import CHAT_TEMPLATE

TEXT = " Yes. It is 9.8 km!\n\n* one\n* 字。次 é"


def byte_fallback():
    """As SentencePiece of Llama: words begin with a space, which opens no text, and unknown characters are bytes."""
    words = [
        "</s>",
        "<unk>",
        "▁Yes",
        ".",
        "▁It",
        "▁is",
        "▁",
        "9",
        "8",
        "▁km",
        "!",
        *(f"<0x{i:02X}>" for i in range(256)),
    ]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>"), words


@pytest.fixture
def characters(make_tokenizer):
    """One token a byte."""
    return make_tokenizer(template=CHAT_TEMPLATE)


def encoded(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def test_steps_are_lines_and_sentences_with_the_reward_at_their_ends(characters):
    ids = [*encoded(characters, TEXT), characters.eos_token_id]
    rewards = [float(i) for i in range(len(ids))]
    steps = steps_of(characters, TEXT, ids, rewards)
    assert [step.text for step in steps] == [" Yes.", " It is 9.8 km!\n\n", "* one\n", "* 字。", "次 é"]
    ends = [len(TEXT[: TEXT.index(end) + len(end)].encode()) - 1 for end in ("Yes.", "\n\n", "one\n", "。")]
    assert [step.reward for step in steps] == [*ends, len(ids) - 1]
    assert all(step.better for step in steps)


def test_a_label_says_whether_the_reward_rose_since_the_step_before_or_the_first_token(characters):
    def labels(*rewards):
        return [step.better for step in steps_of(characters, "a. b. c", encoded(characters, "a. b. c"), rewards)]

    #               a    .  sp b  .  sp  c
    assert labels(0.0, 1.0, 9, 9, 2.0, 9, 1.0) == [True, True, False]
    assert labels(1.0, 0.5, 9, 9, 0.5, 9, 0.6) == [False, False, True]


def test_a_step_ends_with_the_token_that_holds_its_last_character():
    words = ["</s>", "a", ".\n\n", "b", ". ", "c"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "</s>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    steps = steps_of(tokenizer, "a.\n\nb. c", [1, 2, 3, 4, 5], [0.0, 1.0, 0.0, 2.0, 3.0])
    assert steps == [Step("a.\n\n", 1.0, True), Step("b. ", 2.0, True), Step("c", 3.0, True)]


def test_a_tokenizer_that_drops_the_first_space_of_a_text():
    tokenizer, words = byte_fallback()
    text = " Yes. It is 9.8 km!"
    ids = [words.index(word) for word in ("▁Yes", ".", "▁It", "▁is", "▁", "9", ".", "8", "▁km", "!", "</s>")]
    assert decode_response(tokenizer, [words.index("▁Yes")], ids) == text
    assert token_ends(tokenizer, text, ids) == [4, 5, 8, 11, 12, 13, 14, 15, 18, 19, 19]
    assert [step.text for step in steps_of(tokenizer, text, ids, [0.0] * 11)] == [" Yes.", " It is 9.8 km!"]


def test_parts_of_a_character_end_before_it_and_half_a_one_belongs_to_the_last_token(characters):
    ids = encoded(characters, "é字")[:-1]
    assert token_ends(characters, "é\ufffd", ids) == [0, 1, 1, 2]


def test_tokens_that_do_not_spell_the_text_have_no_steps(characters):
    ids = encoded(characters, "good")
    for text in ("bad", "goodness", "so good"):
        assert steps_of(characters, text, ids, [0.0] * 4) is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 258), min_size=1, max_size=60))
def test_the_steps_of_any_tokens_make_up_their_text(make_tokenizer, ids):
    tokenizer = make_tokenizer()
    text = decode_response(tokenizer, encoded(tokenizer, "p"), ids)
    steps = steps_of(tokenizer, text, ids, [0.0] * len(ids))
    assert steps is None or "".join(step.text for step in steps) == text


@given(st.text(min_size=1))
def test_the_steps_of_any_text_make_it_up_and_none_is_blank(make_tokenizer, text):
    tokenizer = make_tokenizer()
    ids = encoded(tokenizer, text)
    steps = steps_of(tokenizer, text, ids, [0.0] * len(ids))
    assert "".join(step.text for step in steps) == text
    assert len(steps) == 1 or all(step.text.strip() for step in steps)


def test_prompts_are_as_the_model_reads_them_without_the_bos_that_trainers_add(characters):
    messages = [{"role": "user", "content": "hi"}]
    made = {"text": "a", "token_ids": encoded(characters, "a"), "token_rewards": [1.0]}
    found = stepped(characters, messages, [made, made | {"token_rewards": None}], date(2026, 1, 1))
    assert found == {"rendered": "u:hi;a:", "steps": [[Step("a", 1.0, False)]]}
    assert stepped(characters, "hi ", [made], date(2026, 1, 1))["rendered"] == "hi "
