"""Adapters against peft's own merging, and models that are adapters on another directory."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rgtg.errors import UserError
from rgtg.models.language import LanguageModel
from rgtg.models.reward import RewardModel
from rgtg.training.reward_trainer import RewardTrainer
from rgtg.training_settings import TrainReward
from tests.tolerance import assert_alike
from tests.training.test_reward_trainer import make_pairs

peft = pytest.importorskip("peft")
IDS = torch.tensor([[1, 40, 50, 60, 2]])


def learner(reward_model, **settings):
    settings = TrainReward(learning_rate=1e-2, precision="float32", lora_rank=4, **settings)
    return RewardTrainer(reward_model, settings, 10, torch.device("cpu"))


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("head", ["scalar", "next-token"])
def test_training_moves_the_adapters_and_the_head_and_saves_plain_weights(make_language, plain, tmp_path, arch, head):
    place = make_language(arch=arch, seed=6)
    before = RewardModel.load(place, head=head).model.state_dict()
    objective = "partial" if head == "scalar" else "farma"
    trained = learner(RewardModel.load(place, head=head), objective=objective)
    with torch.no_grad():
        untouched = trained.reward_model(IDS)
        torch.testing.assert_close(untouched, RewardModel.load(place, head=head)(IDS))
    for step in range(4):
        trained.train_step(make_pairs(8, seed=step))
    frozen = [n for n, p in trained.reward_model.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(
        not torch.equal(p, before[n.removeprefix("model.")])
        for n, p in trained.reward_model.named_parameters()
        if p.requires_grad and "lora_" not in n
    ), "the head is trained"
    trained.reward_model.save(tmp_path / "saved")
    saved = RewardModel.load(str(tmp_path / "saved"))
    with torch.no_grad():
        rewards = trained.reward_model.eval()(IDS)
        assert_alike(saved(IDS), rewards)
    assert (rewards - untouched).abs().max() > 1e-2
    assert saved.model.state_dict().keys() == before.keys()
    assert not any("lora" in name or "base_layer" in name for name in plain(tmp_path / "saved").state_dict())


def test_training_goes_on_from_a_state(reward_dir):
    def steps(learner, seeds):
        for seed in seeds:
            learner.train_step(make_pairs(8, seed=seed))
        return learner.reward_model.state_dict()

    torch.manual_seed(0)
    whole = steps(learner(RewardModel.load(reward_dir)), range(4))
    torch.manual_seed(0)
    first = learner(RewardModel.load(reward_dir))
    steps(first, range(2))
    second = learner(RewardModel.load(reward_dir))
    second.restore(first.state())
    for name, value in steps(second, range(2, 4)).items():
        assert_alike(value, whole[name])


def adapter(base, place, auto, task, tokenizer=None):
    """Adapters of random weights as peft saves them; the merged model's output."""
    model = auto.from_pretrained(base, dtype=torch.float32, **({"num_labels": 1} if task == "SEQ_CLS" else {}))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, task_type=task, init_lora_weights=False))
    adapted.save_pretrained(place)
    with torch.no_grad():
        return adapted.eval()(IDS, attention_mask=torch.ones_like(IDS)).logits


def test_a_language_model_that_is_adapters(language_dir, tmp_path):
    expected = adapter(language_dir, tmp_path, AutoModelForCausalLM, "CAUSAL_LM")
    model = LanguageModel.load(str(tmp_path), device="cpu")
    with torch.inference_mode():
        assert_alike(model.model(IDS).logits, expected)
    assert model.tokenizer.eos_token_id == 2


def test_a_reward_model_that_is_adapters_on_a_language_model(language_dir, tmp_path):
    expected = adapter(language_dir, tmp_path, AutoModelForSequenceClassification, "SEQ_CLS")
    assert RewardModel.check(str(tmp_path), "reward") == "scalar"
    reward = RewardModel.load(str(tmp_path))
    with torch.no_grad():
        assert_alike(reward(IDS)[0, -1], expected[0, 0])


def test_adapters_whose_base_is_gone_or_whose_weights_are_pickled(language_dir, tmp_path):
    adapter(language_dir, tmp_path, AutoModelForCausalLM, "CAUSAL_LM")
    Path(tmp_path, "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(UserError, match="pickled"):
        LanguageModel.load(str(tmp_path), device="cpu")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/no/such/place"}))
    with pytest.raises(UserError, match="base of the adapters"):
        LanguageModel.load(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "adapter_config.json"),
        ("[]", "adapter_config.json: it is not a JSON object"),
        ("{}", "names no base_model_name_or_path"),
        ('{"base_model_name_or_path": "a", "base_model_name_or_path": "b"}', "appears twice"),
        ('{"base_model_name_or_path": "' + "a" * (16 << 20) + '"}', "larger than 16 MiB"),
        ('{"base_model_name_or_path": "a", "peft_type": "PROMPT_TUNING"}', "not plain LoRA"),
        ('{"base_model_name_or_path": "a", "megatron_config": {"x": 1}, "megatron_core": "x"}', "not plain LoRA"),
    ],
    ids=["torn", "list", "nothing", "twice", "huge", "another kind", "names a module"],
)
def test_adapters_with_a_description_that_is_refused(tmp_path, text, words):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match=words):
        LanguageModel.load(str(tmp_path), device="cpu")


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_adapters_that_lack_a_weight_are_not_drawn(language_dir, tmp_path, part):
    adapter(language_dir, tmp_path, AutoModelForCausalLM, "CAUSAL_LM")
    assert not json.loads((tmp_path / "adapter_config.json").read_text())["init_lora_weights"]
    weights = load_file(tmp_path / "adapter_model.safetensors")
    lost = next(name for name in weights if part in name)
    save_file({name: w for name, w in weights.items() if name != lost}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=rf"1 weights of the adapters in .* are missing .* \({lost}\)"):
        LanguageModel.load(str(tmp_path), device="cpu")


def test_adapters_of_a_deeper_model_are_not_merged_by_halves(language_dir, tmp_path):
    adapter(language_dir, tmp_path, AutoModelForCausalLM, "CAUSAL_LM")
    weights = load_file(tmp_path / "adapter_model.safetensors")
    deeper = {name.replace(".layers.0.", ".layers.9."): weight.clone() for name, weight in weights.items()}
    save_file(deeper | weights, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"fit nowhere in their base model \(base_model.*layers\.9\."):
        LanguageModel.load(str(tmp_path), device="cpu")
