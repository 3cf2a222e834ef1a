import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rgtg.models.cache import SlotCache
from rgtg.models.loading import load_config
from rgtg.models.memory import Plan, memory_of, plan

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen3"])
def test_a_plan_is_what_loaded_models_and_their_caches_take(make_language, make_reward, arch, dtype):
    places = make_language(arch=arch), make_reward(arch=arch)
    configs = [AutoConfig.from_pretrained(place) for place in places]
    made = plan([(config, 70) for config in configs], dtype, CPU)
    loaded = [
        auto.from_pretrained(place, dtype=dtype)
        for auto, place in zip((AutoModelForCausalLM, AutoModelForSequenceClassification), places, strict=True)
    ]
    assert made.weights == sum(parameter.nbytes for model in loaded for parameter in model.parameters())
    caches = [SlotCache(model.config, 4, dtype=dtype, device=CPU) for model in loaded]
    for cache in caches:
        cache.reserve(70)
    assert 4 * made.slot == sum(cache.keys.nbytes + cache.values.nbytes for cache in caches)
    # Prompts are kept at their own lengths; a slot of 70 tokens has 128 places.
    assert plan([(config, 70) for config in configs], dtype, CPU, held=58).prompts == made.slot


def test_a_model_that_reads_text_has_no_cache(make_language, make_reward):
    language, reward = (AutoConfig.from_pretrained(place) for place in (make_language(), make_reward()))
    alone = plan([(language, 70)], torch.float32, CPU)
    both = plan([(language, 70), (reward, 0)], torch.float32, CPU)
    assert both.slot == alone.slot
    assert both.weights > alone.weights


@pytest.mark.parametrize(
    ("memory", "slots", "fitting"),
    [
        (0, 32, 32),
        (10_000, 32, 32),
        (3_000, 32, 16),
        (2_000, 32, 8),
        (1_300, 32, 1),
        (1_100, 32, 0),
        (500, 32, 0),
        (1_800, 4, 1),
    ],
)
def test_slots_are_as_many_as_there_is_room_for(memory, slots, fitting):
    """A thousand bytes of weights and a hundred a slot; a tenth is left alone, and four slots are eight rows."""
    assert Plan(weights=1000, slot=100, memory=memory).fitting(slots) == fitting
    assert Plan(weights=700, prompts=300, slot=100, memory=memory).fitting(slots) == fitting


def test_memory_is_that_of_the_machine():
    assert 2**20 < memory_of(CPU) < 2**50


def test_a_model_with_code_of_its_own_is_planned_where_that_is_allowed(make_language, tmp_path):
    directory = tmp_path / "own"
    shutil.copytree(make_language(), directory)
    settings = json.loads((directory / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (directory / "config.json").write_text(json.dumps(settings))
    (directory / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Own(LlamaConfig):\n    model_type = 'own'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Own\n"
    )
    config = load_config(str(directory), "models.language", trust_remote_code=True)
    made = plan([(config, 70)], torch.float32, CPU, trust_remote_code=True)
    usual = plan([(AutoConfig.from_pretrained(make_language()), 70)], torch.float32, CPU)
    assert (made.weights, made.slot) == (usual.weights, usual.slot)
