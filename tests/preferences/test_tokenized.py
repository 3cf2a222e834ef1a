"""Pairs as token ids: where they end, how they are cut, what they share, and whose mistake an error is."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rgtg.errors import UserError
from rgtg.preferences.readers import Pair
from rgtg.preferences.tokenized import TokenizedPair, common_length, tokenize_pair

PAD, BOS, EOS = 0, 1, 2
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{{ '<s>' if loop.first }}{{ m.role[0] }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


def byte_tokenizer(*, bos=True, eos=True, template=None):
    """One token a byte; ids 0 to 2 are <pad>, <s>, </s>, and <s> opens every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    named = {"pad_token": "<pad>"} | ({"bos_token": "<s>"} if bos else {}) | ({"eos_token": "</s>"} if eos else {})
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    wrapped.chat_template = template
    return wrapped


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer(template=TEMPLATE)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def test_whole_responses_end_with_eos(tokenizer):
    pair = tokenize_pair(tokenizer, Pair("sky:", " blue", " black"), 100, "truncate")
    assert pair == TokenizedPair(
        prompt_ids=[BOS, *ids(tokenizer, "sky:")],
        chosen_ids=[*ids(tokenizer, " blue"), EOS],
        rejected_ids=[*ids(tokenizer, " black"), EOS],
        common=3,
    )


def test_without_eos_nothing_is_added():
    tokenizer = byte_tokenizer(eos=False)
    pair = tokenize_pair(tokenizer, Pair("p", "ab", "abc"), 100, "truncate")
    assert (pair.chosen_ids, pair.rejected_ids) == (ids(tokenizer, "ab"), ids(tokenizer, "abc"))
    assert pair.common == 2
    assert tokenize_pair(tokenizer, Pair("p", "", "a"), 100, "truncate") == "a response has no tokens"


def test_an_empty_response_is_its_eos(tokenizer):
    pair = tokenize_pair(tokenizer, Pair("p", "", "a"), 100, "truncate")
    assert pair.chosen_ids == [EOS]
    assert pair.common == 0


# "p" and BOS take 2 of max_length: 3 + EOS fit in 6, 5 + EOS in 8.
@pytest.mark.parametrize(
    ("max_length", "chosen", "rejected", "common"),
    [
        (8, "abc</s>", "abdef</s>", 2),
        (7, "abc</s>", "abdef", 2),  # the EOS alone is cut
        (6, "abc</s>", "abde", 2),
        (5, "abc", "abd", 2),
    ],
)
def test_truncate_cuts_on_the_right_and_takes_eos_away(tokenizer, max_length, chosen, rejected, common):
    pair = tokenize_pair(tokenizer, Pair("p", "abc", "abdef"), max_length, "truncate")
    assert tokenizer.decode(pair.chosen_ids) == chosen
    assert tokenizer.decode(pair.rejected_ids) == rejected
    assert len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)) <= max_length
    assert pair.common == common


@pytest.mark.parametrize(
    ("max_length", "overlong", "reason"),
    [
        (4, "truncate", "chosen equals rejected within train_reward.max_length"),
        (2, "truncate", "the prompt leaves no room for a response within train_reward.max_length"),
        (1, "truncate", "the prompt leaves no room for a response within train_reward.max_length"),
        (7, "drop", "longer than train_reward.max_length"),  # rejected and its EOS need 8
        (2, "drop", "longer than train_reward.max_length"),
    ],
)
def test_reasons_of_length(tokenizer, max_length, overlong, reason):
    assert tokenize_pair(tokenizer, Pair("p", "abc", "abdef"), max_length, overlong) == reason


def test_drop_keeps_what_just_fits(tokenizer):
    whole = tokenize_pair(tokenizer, Pair("p", "abc", "abdef"), 8, "drop")
    assert whole == tokenize_pair(tokenizer, Pair("p", "abc", "abdef"), 100, "truncate")
    assert whole.rejected_ids[-1] == EOS


def test_texts_that_differ_but_not_in_tokens():
    """A vocabulary without these words reads both as unknown."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "p": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    for overlong in ("truncate", "drop"):
        reason = tokenize_pair(tokenizer, Pair("p", " one", " two"), 9, overlong)
        assert reason == "chosen equals rejected within train_reward.max_length"


def test_a_response_that_spells_out_a_control_token(tokenizer):
    def tokenized(chosen, rejected="no"):
        return tokenize_pair(tokenizer, Pair("p", chosen, rejected), 100, "truncate")

    assert tokenized("yes</s>no") == "chosen holds the control token '</s>'"
    assert tokenized("yes</s></s>") == "chosen holds the control token '</s>'"
    assert tokenized("yes", "<pad>no") == "rejected holds the control token '<pad>'"
    assert tokenized("yes</s>") == tokenized("yes")  # one EOS closes a response


def test_messages_pass_through_the_template_with_one_bos(tokenizer):
    pair = tokenize_pair(tokenizer, Pair([{"role": "user", "content": "hi"}], "yes", "no"), 100, "truncate")
    assert pair.prompt_ids == [BOS, *ids(tokenizer, "u:hi;a:")]
    assert tokenizer.decode(pair.chosen_ids) == "yes</s>"


def test_an_empty_prompt_is_a_bos(tokenizer):
    pair = tokenize_pair(tokenizer, Pair("", "a", "b"), 100, "truncate")
    assert pair == TokenizedPair([BOS], [*ids(tokenizer, "a"), EOS], [*ids(tokenizer, "b"), EOS], 0)


def test_an_empty_prompt_without_bos_is_the_rows_own_fault():
    tokenizer = byte_tokenizer(bos=False, eos=False)
    reason = tokenize_pair(tokenizer, Pair("", "a", "b"), 100, "truncate")
    assert reason == "the prompt is empty and the model has no BOS token to start from"
    assert isinstance(tokenize_pair(tokenizer, Pair("p", "a", "b"), 100, "truncate"), TokenizedPair)


def test_messages_that_the_template_refuses_are_the_rows_own_fault(tokenizer):
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    reason = tokenize_pair(tokenizer, Pair(messages, "a", "b"), 100, "drop")
    assert reason.startswith("the chat template refuses the prompt: ")


def test_a_prompt_to_go_on_with_that_the_template_leaves_out():
    tokenizer = byte_tokenizer(template="{% if messages[0].content == 'never' %}x{% endif %}q")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well,"}]
    reason = tokenize_pair(tokenizer, Pair(messages, "a", "b"), 100, "drop")
    assert reason.startswith("the chat template refuses the prompt: ")
    assert len(reason.splitlines()) == 1


def test_a_missing_or_broken_template_is_a_mistake_of_set_up():
    pair = Pair([{"role": "user", "content": "hi"}], "a", "b")
    with pytest.raises(UserError, match="no chat template"):
        tokenize_pair(byte_tokenizer(), pair, 100, "truncate")
    with pytest.raises(UserError, match="is broken"):
        tokenize_pair(byte_tokenizer(template="{% if %}"), pair, 100, "truncate")


@pytest.mark.parametrize(
    ("first", "second", "common"),
    [([1, 2, 3], [1, 2, 4], 2), ([1, 2], [1, 2, 3], 2), ([5], [6], 0), ([1, 9, 3], [1, 8, 3], 1), ([], [1], 0)],
)
def test_common_length(first, second, common):
    assert common_length(first, second) == common
    assert common_length(second, first) == common
