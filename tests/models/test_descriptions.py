"""Model directories that are not what they should be: one sentence, before a model is built, and nothing drawn."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from rgtg.errors import UserError
from rgtg.models.language import LanguageModel, check_language
from rgtg.models.loading import load_config, load_tokenizer
from rgtg.models.reward import RewardModel
from rgtg.models.text_reward import TextReward


@pytest.fixture
def copy_of(tmp_path):
    return lambda directory: Path(shutil.copytree(directory, tmp_path / "copy"))


def change(directory: Path, **changes) -> str:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(directory)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_position_embeddings": "128"}, "max_position_embeddings is '128'"),
        ({"max_position_embeddings": -1}, "max_position_embeddings is -1"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"num_attention_heads": 5, "head_dim": None, "num_key_value_heads": 5}, "divisible by"),
        ({"num_key_value_heads": 3}, "divisible by"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"pad_token_id": 259}, "pad_token_id is 259"),
        ({"pad_token_id": "x"}, "pad_token_id is 'x'"),
        ({"eos_token_id": "x"}, "eos_token_id is 'x'"),
        ({"eos_token_id": [2, None, {}]}, "eos_token_id is"),
        ({"dtype": "nosuch"}, "dtype is 'nosuch'"),
        ({"torch_dtype": "Tensor"}, "torch_dtype is 'Tensor'"),
        ({"dtype": 7}, "dtype is 7"),
        ({"num_labels": "two"}, "num_labels is 'two'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized"),
        (
            {"transformers_weights": "_hidden.safetensors"},
            "key 'transformers_weights' in the config.json of .* names other files",
        ),
        ({"text_config": {"transformers_weights": "adapter_model.bin"}}, "'transformers_weights'"),
        ({"configuration_files": ["config.1.0.0.json"]}, "'configuration_files'"),
        ({"architectures": 7}, "architectures is 7"),
        ({"rope_parameters": "x"}, "cannot load"),
    ],
)
def test_a_config_that_no_model_can_be_built_from(copy_of, language_dir, changes, words):
    place = change(copy_of(language_dir), **changes)
    with pytest.raises(UserError, match=rf"models\.language: .*({words})"):
        LanguageModel.load(place)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": ' * 100_000 + "1" + "}" * 100_000, "config.json"),
        ('{"model_type": "llama", "model_type": "gpt2"}', "'model_type' appears twice"),
        ('{"a": "' + "x" * (16 << 20) + '"}', "larger than 16 MiB"),
        ("\x00\xff", "config.json"),
    ],
    ids=["deep", "twice", "huge", "binary"],
)
def test_a_config_that_is_no_sound_json(copy_of, language_dir, text, words):
    directory = copy_of(language_dir)
    (directory / "config.json").write_text(text)
    with pytest.raises(UserError, match=words):
        check_language(str(directory))


def test_keys_that_are_null_say_nothing(copy_of, language_dir):
    place = change(copy_of(language_dir), quantization_config=None, transformers_weights=None)
    assert LanguageModel.load(place).context == 128


def test_many_keys_of_which_one_is_there_twice(copy_of, language_dir):
    directory = copy_of(language_dir)
    (directory / "config.json").write_text("{" + "".join(f'"{i}": 1, ' for i in range(100_000)) + '"7": 1}')
    with pytest.raises(UserError, match="the key '7' appears twice"):
        check_language(str(directory))


def test_weights_of_distributed_training_are_not_read_instead(copy_of, language_dir):
    directory = copy_of(language_dir)
    shutil.copy(directory / "model.safetensors", directory / "shard-00001-model-00001-of-00001.safetensors")
    with pytest.raises(UserError, match="a sharded checkpoint of distributed training"):
        LanguageModel.load(str(directory))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_native_code_of_a_hub_is_not_asked_for(copy_of, reward_dir, key, monkeypatch):
    place = change(copy_of(reward_dir), **{key: "owner/kernel"})
    assert load_config(place, "x")._attn_implementation is None
    asked = []
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", lambda *a, **k: asked.append(a))
    for load in (RewardModel.load, lambda p: TextReward.load(p, what="judge")):
        load(place)
    assert not asked


def test_a_tokenizer_that_reaches_beyond_the_embeddings(copy_of, language_dir, reward_dir, make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    for source, load in (
        (language_dir, LanguageModel.load),
        (language_dir, RewardModel.load),
        (reward_dir, RewardModel.load),
        (reward_dir, lambda place: TextReward.load(place, what="judge")),
        (reward_dir, lambda place: TextReward.check(place, what="judge")),
    ):
        directory = copy_of(source)
        tokenizer.save_pretrained(directory)
        with pytest.raises(UserError, match=r"the token '\[PAD\]' with id 259, and the model knows 259 tokens"):
            load(str(directory))
        shutil.rmtree(directory)


def test_a_tokenizer_whose_time_grows_by_the_square(copy_of, language_dir):
    directory = copy_of(language_dir)
    described = json.loads((directory / "tokenizer.json").read_text())
    model = {"type": "WordPiece", "unk_token": "<pad>", "continuing_subword_prefix": "##"}
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3}
    for longest, is_refused in ((1000, False), (10**9, True)):
        described["model"] = model | {"vocab": vocabulary, "max_input_chars_per_word": longest}
        (directory / "tokenizer.json").write_text(json.dumps(described))
        refusal = pytest.raises(UserError, match="words of 1000000000 characters .* at most 1000")
        with refusal if is_refused else nullcontext():
            load_tokenizer(str(directory), "models.language")


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_a_weight_that_is_missing_is_not_drawn(copy_of, language_dir, name):
    directory = copy_of(language_dir)
    weights = load_file(directory / "model.safetensors")
    del weights[name]
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=rf"models\.language: .* lack 1 of the model's \({name}\)"):
        LanguageModel.load(str(directory))


def test_a_classifier_without_its_head(copy_of, reward_dir):
    directory = copy_of(reward_dir)
    weights = load_file(directory / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    for load in (RewardModel.load, lambda place: TextReward.load(place, what="judge")):
        with pytest.raises(UserError, match=r"score\.weight"):
            load(str(directory))


def test_weights_of_another_shape_are_not_drawn(copy_of, language_dir):
    directory = copy_of(language_dir)
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(16)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"models\.language: cannot load"):
        LanguageModel.load(str(directory))


def test_a_model_that_its_weights_cannot_fill(copy_of, language_dir):
    place = change(copy_of(language_dir), hidden_size=1 << 20, num_hidden_layers=1000)
    with pytest.raises(UserError, match="describes 1000 layers of 1048576"):
        LanguageModel.load(place)


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "_x.safetensors", ".x.safetensors", "a/x", 7])
def test_an_index_names_files_of_its_own_directory(copy_of, language_dir, name):
    directory = copy_of(language_dir)
    weights = directory / "model.safetensors"
    if isinstance(name, str) and "a/" not in name:
        shutil.copy(weights, directory / name if not name.startswith("/") else directory.parent / "x.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(weights), name)}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    weights.unlink()
    with pytest.raises(UserError, match="names the file .*; weights must be in the model's own"):
        LanguageModel.load(str(directory))


@pytest.mark.parametrize(
    "header",
    [
        (1 << 40).to_bytes(8, "little") + b"{}",
        (100 << 20).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        len(
            h := b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],'
            b'"data_offsets":[0,4]}}'
        ).to_bytes(8, "little")
        + h
        + b"\0" * 4,
    ],
    ids=["torn", "long", "list", "overlap"],
)
def test_a_broken_header(copy_of, language_dir, header):
    directory = copy_of(language_dir)
    (directory / "model.safetensors").write_bytes(header)
    with pytest.raises(UserError, match=r"models\.language: cannot load"):
        LanguageModel.load(str(directory))


def test_a_tokenizer_whose_config_names_another_file(copy_of, language_dir):
    """One that no digest of the directory covers."""
    directory = copy_of(language_dir)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["fast_tokenizer_files"] = ["_hidden/tokenizer.1.0.0.json"]
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match="the key 'fast_tokenizer_files' in the tokenizer_config.json of .* names other files"
    ):
        LanguageModel.load(str(directory))


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "tokenizer.model"])
def test_a_tokenizer_beyond_all_measure_is_not_read(copy_of, language_dir, name, monkeypatch):
    directory = copy_of(language_dir)
    with (directory / name).open("ab") as file:
        file.truncate((512 << 20) + 1)  # it takes no room
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("it was to be read"))
    for load in (load_tokenizer, load_adapters_tokenizer):
        with pytest.raises(UserError, match=f"the {name} of .* is larger than 512 MiB"):
            load(str(directory), "models.language")


def load_adapters_tokenizer(place: str, what: str) -> None:
    """Of adapters that have a tokenizer of their own."""
    Path(place, "config.json").unlink()
    Path(place, "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": place}))
    load_tokenizer(place, what)


def test_why_a_tokenizer_cannot_be_loaded_is_said_unless_there_is_none(copy_of, language_dir):
    directory = copy_of(language_dir)
    (directory / "tokenizer.json").rename(directory / "tokenizer.model")  # which it is not
    with pytest.raises(UserError) as caught:
        load_tokenizer(str(directory), "x")
    assert "tokenizer.json" not in str(caught.value)
    (directory / "tokenizer.model").unlink()
    with pytest.raises(UserError, match="it has no tokenizer.json"):
        load_tokenizer(str(directory), "x")


def test_adapters_on_adapters(tmp_path):
    base = tmp_path / "a" / ".." / "a"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    with pytest.raises(UserError, match="holds adapters too"):
        load_config(str(tmp_path / "a"), "models.language")


def test_adapters_beside_a_model(copy_of, language_dir):
    directory = copy_of(language_dir)
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/other"}))
    with pytest.raises(UserError, match="both a config.json and an adapter_config.json"):
        LanguageModel.load(str(directory))


@pytest.mark.parametrize("text", ['{"eos_token_id": ["x"]}', "{", "[" * 100_000])
def test_a_broken_generation_config(copy_of, language_dir, text):
    directory = copy_of(language_dir)
    (directory / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match=r"models\.language: .*generation_config\.json"):
        LanguageModel.load(str(directory))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        *(("tokenizer.json", text) for text in ('{"a": ' * 100_000, "{", "[]", '{"model": {"type": "BPE"}}')),
        *(("tokenizer_config.json", text) for text in ('{"a": ' * 100_000, "{", "[]")),
    ],
    ids=lambda value: value[:20],
)
def test_a_broken_tokenizer(copy_of, language_dir, file, text):
    directory = copy_of(language_dir)
    (directory / file).write_text(text)
    with pytest.raises(UserError, match=r"models\.language: cannot load"):
        LanguageModel.load(str(directory))
