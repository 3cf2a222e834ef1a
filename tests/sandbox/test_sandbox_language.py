"""The sandbox's language model: its tokenizer gives texts back, and a few steps already teach it something."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rgtg import chat
from rgtg.sandbox import world
from rgtg.sandbox.language import train_language, train_tokenizer
from rgtg.sandbox.sizes import LanguageSpec

TINY = LanguageSpec(hidden=32, intermediate=64, layers=1, heads=2, kv_heads=1, tokenizer_texts=300, steps=60, rows=2)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(world.texts(500, 0), vocab=512, positions=256)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    directory, lines = tmp_path_factory.mktemp("language"), []
    train_language(directory, seed=0, log=lines.append, spec=TINY)
    return directory, lines


def test_special_tokens_have_the_first_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_tokens_to_ids(["<|pad|>", "<|bos|>", "<|eos|>"]) == [0, 1, 2]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert len(tokenizer) == 512


@pytest.mark.parametrize("text", [*world.texts(20, 1), "", " a  b .", "Ünïcode 日本 🙂\n\t<tag>", "do n't , it 's ."])
def test_texts_come_back_behind_one_bos(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[0] == 1
    assert ids.count(1) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_response_has_the_same_tokens_alone_and_behind_its_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    for pair in world.preference_pairs(50, 0):
        alone = tokenizer(pair["chosen"], add_special_tokens=False).input_ids
        assert tokenizer(pair["prompt"] + pair["chosen"]).input_ids == tokenizer(pair["prompt"]).input_ids + alone


def test_messages_are_plain_text(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt, response = "review of the phone :", " the app is quick ."
    user, assistant = {"role": "user", "content": prompt}, {"role": "assistant", "content": response}
    assert chat.render(tokenizer, [user]) == tokenizer.bos_token + prompt
    assert chat.encode_prompt(tokenizer, [user]) == chat.encode_prompt(tokenizer, prompt)
    assert tokenizer.apply_chat_template([user, assistant], tokenize=False) == tokenizer.bos_token + prompt + response
    assert chat.render(tokenizer, [user, assistant]) == tokenizer.bos_token + prompt + response


def test_texts_fit_the_model(tokenizer: PreTrainedTokenizerFast) -> None:
    assert max(map(len, tokenizer(world.texts(500, 2)).input_ids)) < 128  # the model has 256 positions


def test_a_few_steps_learn_and_load_in_transformers(trained: tuple[Path, list[str]]) -> None:
    directory, lines = trained
    assert (directory / "model.safetensors").is_file()
    tokenizer, model = (kind.from_pretrained(directory) for kind in (AutoTokenizer, AutoModelForCausalLM))
    texts = world.texts(20, 99)
    ids = tokenizer(texts, return_tensors="pt", padding=True)
    labels = ids.input_ids.masked_fill(ids.attention_mask == 0, -100)
    with torch.no_grad():
        loss = model(**ids, labels=labels).loss.item()
    assert loss < math.log(512) - 1.5  # well below an untrained model, which is uniform
    assert "60/60" in lines[-1]
    assert "loss" in lines[-1]
    generated = model.generate(**tokenizer("review of the phone :", return_tensors="pt"), max_new_tokens=5)
    assert generated.shape[1] > 5


def test_training_repeats_itself_and_leaves_the_caller_alone(trained: tuple[Path, list[str]], tmp_path: Path) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train_language(tmp_path, seed=0, log=lambda line: None, spec=TINY)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert (tmp_path / "model.safetensors").read_bytes() == (trained[0] / "model.safetensors").read_bytes()
