"""Prompts to token ids and back: one BOS and never two, responses where they follow their prompt."""

import hashlib
import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rgtg.chat import check_prompt, decode_response, encode_prompt, encode_response, prompt_id, render
from rgtg.errors import RowError, UserError

BOS, EOS = 1, 2
# The first writes the BOS as most templates do; the second leaves it to the tokenizer.
WITH_BOS = (
    "{{ '<s>' }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{{ m.role[0] }}:{{ m.content }}{% if not loop.last or m.role == 'user' %};{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
WITHOUT_BOS = WITH_BOS.removeprefix("{{ '<s>' }}")
USER = [{"role": "user", "content": "hi"}]
STARTED = [*USER, {"role": "assistant", "content": "Well, "}]


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def test_a_text_beyond_all_measure_is_the_rows_own_error(make_tokenizer, monkeypatch):
    monkeypatch.setattr("rgtg.chat.MAX_TEXT", 10)
    tokenizer = make_tokenizer()
    assert len(encode_prompt(tokenizer, "x" * 10)) == 11
    for call in (
        lambda: encode_prompt(tokenizer, "x" * 11),
        lambda: encode_response(tokenizer, "x" * 6, "y" * 5),
    ):
        with pytest.raises(RowError, match="the text has 11 characters, more than 10"):
            call()


@pytest.mark.parametrize("template", [WITH_BOS, WITHOUT_BOS])
@pytest.mark.parametrize("adds", [True, False], ids=["tokenizer-adds-bos", "tokenizer-adds-none"])
def test_one_bos_whoever_writes_it(make_tokenizer, template, adds):
    tokenizer = make_tokenizer(template=template)
    if not adds:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    encoded = encode_prompt(tokenizer, USER)
    assert encoded.count(BOS) == (1 if template == WITH_BOS else 0)  # what the template writes is complete
    assert encoded == tokenizer.apply_chat_template(USER, add_generation_prompt=True, return_dict=False)
    assert [i for i in encoded if i != BOS] == ids(tokenizer, "u:hi;a:")
    assert encode_prompt(tokenizer, "plain") == [BOS, *ids(tokenizer, "plain")][0 if adds else 1 :]


def test_a_bos_further_in_is_the_texts_own(make_tokenizer):
    tokenizer = make_tokenizer()
    assert encode_prompt(tokenizer, "<s><s>a<s>b").count(BOS) == 2
    assert encode_prompt(tokenizer, "a<s><s>b") == [BOS, *ids(tokenizer, "a"), BOS, BOS, *ids(tokenizer, "b")]


def test_where_bos_is_eos_a_prompt_keeps_both(make_tokenizer):
    """As in GPT-2, where the same token parts documents."""
    tokenizer = make_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = "<s>"
    assert encode_prompt(tokenizer, "<s>a") == [BOS, BOS, *ids(tokenizer, "a")]


def test_a_tokenizer_that_closes_every_text(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    assert encode_prompt(tokenizer, "ab") == [BOS, *ids(tokenizer, "ab")]
    assert encode_response(tokenizer, "ab", "cd") == [*ids(tokenizer, "cd"), EOS]
    assert encode_response(tokenizer, "ab", "cd", complete=False) == ids(tokenizer, "cd")


def test_messages_through_the_template(make_tokenizer):
    tokenizer = make_tokenizer(template=WITH_BOS)
    assert render(tokenizer, USER) == "<s>u:hi;a:"
    assert render(tokenizer, "u: as it is") == "u: as it is"


def test_a_conversation_that_ends_with_the_assistant_goes_on(make_tokenizer):
    tokenizer = make_tokenizer(template=WITH_BOS)
    assert render(tokenizer, STARTED) == "<s>u:hi;a:Well, "
    assert render(tokenizer, [*STARTED, {"role": "user", "content": "?"}]) == "<s>u:hi;a:Well, ;u:?;a:"


def test_a_message_that_would_end_its_turn_is_the_rows_own_error(make_tokenizer):
    tokenizer = make_tokenizer(template=WITH_BOS)
    for text, token in (("a</s>b", "</s>"), ("<pad>", "<pad>"), ("x<s></s>", "<s>")):
        with pytest.raises(RowError, match=f"a message of the prompt holds the control token '{token}'"):
            render(tokenizer, [{"role": "user", "content": text}])
    assert render(tokenizer, "a</s>b") == "a</s>b"  # text may be rendered already


def test_messages_without_a_template_are_a_mistake_of_set_up(make_tokenizer):
    with pytest.raises(UserError, match="no chat template") as raised:
        render(make_tokenizer(), USER)
    assert not isinstance(raised.value, RowError)


def test_messages_that_the_template_refuses_are_the_rows_own(make_tokenizer):
    with pytest.raises(RowError, match="the chat template refuses the prompt: no system turn"):
        render(make_tokenizer(template=WITH_BOS), [{"role": "system", "content": "x"}, *USER])


def test_an_empty_prompt_is_a_bos(make_tokenizer):
    assert encode_prompt(make_tokenizer(), "") == [BOS]


def test_an_empty_prompt_without_bos(make_tokenizer):
    assert encode_prompt(make_tokenizer(bos=False), "") == [EOS]  # as GPT-2 starts a text
    with pytest.raises(RowError, match="empty"):
        encode_prompt(make_tokenizer(bos=False, eos=False), "")


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("a prompt", None),
        ("", None),
        (USER, None),
        ([{"role": "user", "content": "", "name": "more"}], None),
        (None, "the prompt is null"),
        (7, "the prompt is of type int"),
        ({"role": "user", "content": "x"}, "the prompt is of type dict"),
        ([], "empty list"),
        (["x"], "message 0 of the prompt has no role and content"),
        ([*USER, {"role": "user"}], "message 1 of the prompt has no role and content"),
        ([{"role": "user", "content": None}], "the content of message 0 of the prompt is NoneType"),
        ([{"role": 1, "content": "x"}], "the role of message 0 of the prompt is int"),
        ("a \ud800 b", "not valid Unicode .* lone surrogate"),
        ([{"role": "user", "content": "\udfff"}], "the content of message 0 .* lone surrogate"),
    ],
)
def test_check_prompt(prompt, reason):
    found = check_prompt(prompt)
    assert found is None if reason is None else re.search(reason, found)


def test_prompt_id_is_the_digest_of_what_the_prompt_says():
    assert prompt_id("héllo") == hashlib.sha256("héllo".encode()).hexdigest()
    messages = [{"role": "user", "content": "é"}]
    assert prompt_id(messages) == hashlib.sha256('[{"content":"é","role":"user"}]'.encode()).hexdigest()
    assert prompt_id([{"content": "é", "role": "user"}]) == prompt_id(messages)  # the order of keys is none
    assert prompt_id([{"role": "user", "content": "é", "name": None}]) == prompt_id(messages)  # nor is a column
    different = ["a", "a ", "", "A", USER, STARTED, STARTED[::-1], [{"role": "hi", "content": "user"}]]
    assert len({prompt_id(p) for p in different}) == len(different)
    assert prompt_id("\ud800") != prompt_id("\ud801")


def test_a_response_ends_with_one_eos(make_tokenizer):
    tokenizer = make_tokenizer()
    assert encode_response(tokenizer, "ab", " cd") == [*ids(tokenizer, " cd"), EOS]
    assert encode_response(tokenizer, "ab", " cd</s>") == [*ids(tokenizer, " cd"), EOS]
    assert encode_response(tokenizer, "ab", " cd", complete=False) == ids(tokenizer, " cd")
    assert encode_response(tokenizer, "ab", "") == [EOS]
    assert encode_response(tokenizer, "ab", "", complete=False) == []
    assert encode_response(make_tokenizer(eos=False), "ab", "c") == ids(tokenizer, "c")
    assert encode_response(tokenizer, "", "cd") == [*ids(tokenizer, "cd"), EOS]


@pytest.fixture(scope="module")
def merging():
    """A BPE that merges a and b, wherever they meet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet, "ab"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def test_a_prompt_keeps_its_ids_where_the_boundary_merges(merging):
    assert merging("xab").input_ids == [BOS, *ids(merging, "x"), *ids(merging, "ab")]
    assert len(ids(merging, "ab")) == 1
    response = encode_response(merging, "xa", "bab")
    assert encode_prompt(merging, "xa") + response == [
        BOS,
        *ids(merging, "x"),
        *ids(merging, "a"),
        *ids(merging, "b"),
        *ids(merging, "ab"),
        EOS,
    ]


@pytest.fixture(scope="module")
def spaces():
    """One token a character, and like the SentencePiece family: a text of its own is given a space in front."""
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "▁", *"behiklstuy"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def test_a_response_is_tokenized_behind_its_prompt(spaces):
    assert spaces.convert_ids_to_tokens(ids(spaces, "ky")) == ["▁", "k", "y"]  # on its own
    for response, tokens in (("ky is", ["k", "y", "▁", "i", "s"]), (" is", ["▁", "i", "s"])):
        encoded = encode_response(spaces, "the s", response)
        assert spaces.convert_ids_to_tokens(encoded) == [*tokens, "</s>"]


def test_a_decoded_response_keeps_the_space_before_it(spaces, make_tokenizer):
    prompt = encode_prompt(spaces, "the sky")
    response = [*spaces.convert_tokens_to_ids(["▁", "i", "s"]), EOS]
    assert spaces.decode(response, skip_special_tokens=True) == "is"  # on its own, the space is lost
    assert decode_response(spaces, prompt, response) == " is"
    assert decode_response(spaces, encode_prompt(spaces, "the s"), response[1:]) == "is"
    tokenizer = make_tokenizer()
    for text in (" cd", "cd", "  two", "\n", ""):
        encoded = encode_response(tokenizer, "ab", text)
        assert decode_response(tokenizer, encode_prompt(tokenizer, "ab"), encoded) == text


def test_a_decoded_response_after_a_prompt_cut_within_a_character(make_tokenizer):
    """Half a character before: together they would decode to what neither is."""
    tokenizer = make_tokenizer()
    first, second = ids(tokenizer, "é")
    assert decode_response(tokenizer, [BOS, first], [second, *ids(tokenizer, "x")]).endswith("x")
    long_prompt = encode_prompt(tokenizer, "é" * 20)
    assert decode_response(tokenizer, long_prompt, ids(tokenizer, "été")) == "été"


def test_special_tokens_are_no_text(make_tokenizer):
    tokenizer = make_tokenizer()
    assert decode_response(tokenizer, [BOS, 50], [*ids(tokenizer, "x"), EOS]) == "x"
    assert decode_response(tokenizer, [BOS], [EOS]) == ""


# A turn's thinking goes where the conversation goes on. Models with the `closed` template open it themselves (Qwen3);
# the `open` template does it for them (DeepSeek-R1).
TURN = (
    "{{ '<s>' }}{% for m in messages %}[{{ m.role[0] }}]"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}{% endfor %}"
)
THINKING = {
    "closed": TURN + "{% if add_generation_prompt %}[a]{% endif %}",
    "open": TURN + "{% if add_generation_prompt %}[a]<think>\n{% endif %}",
}
TALK = [
    {"role": "user", "content": "1+1"},
    {"role": "assistant", "content": "<think>\nwell\n</think>2"},
    {"role": "user", "content": "2+2"},
]


@pytest.mark.parametrize(
    ("template", "response", "expected"),
    [
        ("closed", "<think>\nhm\n</think>4", "<think>\nhm\n</think>4"),
        ("closed", "4", "4"),
        ("open", "<think>\nhm\n</think>4", "hm\n</think>4"),
        ("open", "\n<think>hm</think>4", "hm</think>4"),
        ("open", "hm\n</think>4", "hm\n</think>4"),
        ("open", "no <think> here", "no <think> here"),
    ],
)
def test_what_is_trained_on_is_what_decoding_saw(make_tokenizer, template, response, expected):
    """The thinking is opened once, by the template or by the model; earlier turns are as the template has them."""
    tokenizer = make_tokenizer(template=THINKING[template])
    prompt_ids = encode_prompt(tokenizer, TALK)
    by_transformers = tokenizer.apply_chat_template(TALK, add_generation_prompt=True).input_ids
    assert prompt_ids == by_transformers
    assert "well" not in tokenizer.decode(prompt_ids)
    response_ids = encode_response(tokenizer, TALK, response)
    assert tokenizer.decode(response_ids) == f"{expected}</s>"
    # A model that had written this after the prompt would have written the same ids.
    assert decode_response(tokenizer, prompt_ids, response_ids) == expected
    assert encode_response(tokenizer, TALK, decode_response(tokenizer, prompt_ids, response_ids)) == response_ids


def test_thinking_in_a_prompt_of_text_is_as_it_was_written(make_tokenizer):
    tokenizer = make_tokenizer(template=THINKING["open"])
    assert tokenizer.decode(encode_response(tokenizer, "q<think>\n", "<think>\na")) == "<think>\na</s>"
