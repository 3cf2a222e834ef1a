"""What is refused before a model runs, in a sentence that names the setting and the place."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rgtg.errors import UserError
from rgtg.models import loading
from rgtg.models.language import LanguageModel
from rgtg.models.loading import (
    context_length,
    load_tokenizer,
    load_weights,
    resolve_device,
    resolve_dtype,
    slow_bfloat16,
)
from rgtg.models.reward import RewardModel


@pytest.fixture
def copy_of(tmp_path):
    """A copy of a model directory to break."""

    def copy(directory: str) -> Path:
        return Path(shutil.copytree(directory, tmp_path / "copy"))

    return copy


@pytest.mark.parametrize("load", [LanguageModel.load, RewardModel.load])
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("/no/such/place", "does not exist"),
        ("./nowhere", "does not exist"),
        (__file__, "is a file"),
        ("nobody/no-such-model", "nor a copy from the hub"),
    ],
)
def test_a_place_that_is_not_there(load, place, words):
    with pytest.raises(UserError, match=rf"models\..*{place}.*{words}|models\..*{words}.*{place}"):
        load(place)


@pytest.mark.parametrize("load", [LanguageModel.load, RewardModel.load])
def test_a_directory_without_a_config(load, tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"model_type": "unheard-of"}'], ids=["cut", "list", "empty", "unknown"]
)
def test_a_broken_config(copy_of, language_dir, content):
    directory = copy_of(language_dir)
    (directory / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"models\.language"):
        LanguageModel.load(str(directory))


def test_a_directory_without_weights(copy_of, language_dir):
    directory = copy_of(language_dir)
    (directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"models\.language: cannot load"):
        LanguageModel.load(str(directory))


def test_weights_that_were_cut_short(copy_of, language_dir):
    """As an upload that broke off leaves them."""
    directory = copy_of(language_dir)
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"models\.language: cannot load"):
        LanguageModel.load(str(directory))


def test_pickled_weights_are_not_read(copy_of, language_dir, plain):
    directory = copy_of(language_dir)
    (directory / "model.safetensors").unlink()
    torch.save(plain(language_dir).state_dict(), directory / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"models\.language: cannot load"):
        LanguageModel.load(str(directory))


def test_code_that_comes_with_a_model_is_not_run(copy_of, language_dir, tmp_path):
    directory = copy_of(language_dir)
    settings = json.loads((directory / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (directory / "config.json").write_text(json.dumps(settings))
    (directory / "own.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')")
    with pytest.raises(UserError, match=r"models\.language: cannot load"):
        LanguageModel.load(str(directory))
    assert not (tmp_path / "it-ran").exists()


def test_a_directory_without_a_tokenizer(copy_of, language_dir):
    directory = copy_of(language_dir)
    for file in directory.glob("*token*"):
        file.unlink()
    with pytest.raises(UserError, match=r"models\.language: cannot load the tokenizer of .* has no tokenizer\.json"):
        LanguageModel.load(str(directory))


def test_a_classifier_of_two_labels(make_reward):
    directory = make_reward(num_labels=2)
    for call in (lambda: RewardModel.check(directory, "train_reward.init"), lambda: RewardModel.load(directory)):
        with pytest.raises(UserError, match="2 labels"):
            call()


def test_an_encoder_is_no_reward_model(make_reward):
    with pytest.raises(UserError, match="'bert' classifier has no head that scores every position"):
        RewardModel.load(make_reward(arch="bert"))


def test_an_encoder_is_no_language_model(make_reward, copy_of):
    directory = make_reward(arch="bert")
    with pytest.raises(UserError, match=r"models\.language"):
        LanguageModel.load(directory)
    copy = copy_of(directory)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    with pytest.raises(UserError, match=r"models\.language"):
        LanguageModel.load(str(copy))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention layers"),
        ({"is_encoder_decoder": True}, "not a decoder-only transformer"),
    ],
)
def test_architectures_without_a_past_to_keep(copy_of, language_dir, changes, words):
    directory = copy_of(language_dir)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=words):
        LanguageModel.load(str(directory))
    with pytest.raises(UserError, match=words):
        RewardModel.check(str(directory), "train_reward.init")


def test_what_check_says(language_dir, reward_dir, tmp_path):
    assert RewardModel.check(reward_dir, "x") == "scalar"
    assert RewardModel.check(language_dir, "x") is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaModel"]}))
    with pytest.raises(UserError, match="holds a LlamaModel"):
        RewardModel.check(str(tmp_path), "x")


def test_an_absent_device():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(UserError, match="no CUDA device"):
        resolve_device("cuda")
    assert resolve_device("auto") == torch.device("cpu")


def test_dtypes(language_dir):
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert LanguageModel.load(language_dir, dtype="bfloat16").model.dtype == torch.bfloat16
    assert not LanguageModel.load(language_dir).model.training


def test_the_sentence_names_the_setting(tmp_path):
    with pytest.raises(UserError, match=r"^train_reward\.init: cannot load the tokenizer"):
        load_tokenizer(str(tmp_path), "train_reward.init")

    with pytest.raises(UserError, match=r"^train_reward\.init: .* has no config\.json"):
        load_weights(AutoModelForCausalLM, str(tmp_path), "train_reward.init", device="cpu")


@pytest.mark.parametrize(
    ("model_type", "settings", "length"),
    [
        ("llama", {"max_position_embeddings": 77}, 77),
        ("gpt2", {"n_positions": 77}, 77),
        ("mistral", {"max_position_embeddings": 77, "sliding_window": 50}, 50),
        ("mistral", {"max_position_embeddings": 77, "sliding_window": None}, 77),
        ("qwen2", {"max_position_embeddings": 77, "sliding_window": 50, "use_sliding_window": False}, 77),
        ("qwen2", {"max_position_embeddings": 77, "sliding_window": 50, "use_sliding_window": True}, 50),
    ],
)
def test_context_length(model_type, settings, length):

    assert context_length(AutoConfig.for_model(model_type, **settings)) == length


@pytest.mark.parametrize(
    ("found", "device", "warns"),
    [
        ({"avx2": True}, "cpu", True),
        ({"avx512_f": True}, "cpu", True),
        ({"avx512_bf16": True}, "cpu", False),
        ({"avx512_bf16": True, "amx_bf16": True}, "cpu", False),
        ({}, "cpu", False),  # a torch that does not say
        ({"avx2": True}, "cuda", False),
    ],
)
def test_who_asks_for_bfloat16_hears_where_it_is_slow(monkeypatch, found, device, warns):
    monkeypatch.setattr(loading, "_capabilities", lambda: found)
    warning = slow_bfloat16("models.dtype=bfloat16", torch.device(device))
    assert (warning is not None) == warns
    assert warning is None or warning.startswith("models.dtype=bfloat16: this CPU has no bfloat16 units")


@pytest.mark.parametrize("head", [None, "next-token"])
def test_weights_go_to_a_gpu_without_a_copy_on_the_host(monkeypatch, language_dir, head):
    class Asked(Exception):
        pass

    def from_pretrained(cls, *args, device_map=None, **options):
        raise Asked(device_map)

    for auto in (AutoModelForCausalLM, AutoModelForSequenceClassification):
        monkeypatch.setattr(auto, "from_pretrained", classmethod(from_pretrained))
    with pytest.raises(Asked) as asked:
        RewardModel.load(language_dir, head=head, device="cuda:1")
    assert asked.value.args == ({"": torch.device("cuda:1")},)


def test_a_device_map_is_understood(language_dir):
    """Of one device it leaves no hooks behind; transformers needs accelerate for it."""
    options = {"device_map": {"": torch.device("cpu")}}
    loaded = load_weights(AutoModelForCausalLM, language_dir, "models.language", device="cpu", **options)
    plain = load_weights(AutoModelForCausalLM, language_dir, "models.language", device="cpu")
    assert not hasattr(loaded, "_hf_hook")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name])
