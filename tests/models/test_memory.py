import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rgtg.models.cache import SlotCache
from rgtg.models.memory import Plan, free_bytes, plan

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen3"])
def test_a_plan_is_what_loaded_models_and_their_caches_take(make_language, make_reward, arch, dtype):
    places = make_language(arch=arch), make_reward(arch=arch)
    configs = [AutoConfig.from_pretrained(place) for place in places]
    made = plan(configs, [], 70, dtype)
    loaded = [
        auto.from_pretrained(place, dtype=dtype)
        for auto, place in zip((AutoModelForCausalLM, AutoModelForSequenceClassification), places, strict=True)
    ]
    assert made.weights == sum(parameter.nbytes for model in loaded for parameter in model.parameters())
    caches = [SlotCache(model.config, 4, dtype=dtype, device=CPU) for model in loaded]
    for cache in caches:
        cache.reserve(70)
    assert 4 * made.slot == sum(cache.keys.nbytes + cache.values.nbytes for cache in caches)


def test_a_model_that_reads_text_has_no_cache(make_language, make_reward):
    language, reward = (AutoConfig.from_pretrained(place) for place in (make_language(), make_reward()))
    alone, both = plan([language], [], 70, torch.float32), plan([language], [reward], 70, torch.float32)
    assert both.slot == alone.slot
    assert both.weights > alone.weights


@pytest.mark.parametrize(
    ("free", "slots", "fitting"),
    [(0, 32, 32), (10_000, 32, 32), (3_000, 32, 16), (2_000, 32, 8), (1_300, 32, 1), (1_100, 32, 0), (500, 32, 0)],
)
def test_slots_are_as_many_as_there_is_room_for(free, slots, fitting):
    """A thousand bytes of weights and a hundred a slot; a tenth of what is free is left alone."""
    assert Plan(weights=1000, slot=100, free=free).fitting(slots) == fitting


def test_free_memory_is_that_of_the_machine():
    assert 2**20 < free_bytes(CPU) < 2**50
