import json
import shutil
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rgtg.decoding.candidate_rewards import CandidateGuidance
from rgtg.decoding.engine import Engine
from rgtg.decoding.prefill import HELD
from rgtg.decoding.token_rule import Rule
from rgtg.models.attention import view_length
from rgtg.models.cache import SlotCache
from rgtg.models.language import LanguageModel
from rgtg.models.loading import load_config
from rgtg.models.memory import USABLE, Plan, memory_of, plan
from rgtg.models.reward import RewardModel

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


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_packed_output_layer_is_no_longer_its_embeddings(make_language, arch):
    tied, untied = (
        AutoConfig.from_pretrained(make_language(arch=arch, tie_word_embeddings=tie)) for tie in (True, False)
    )
    on_cpu, on_gpu = (
        [plan([(config, 70)], torch.float32, torch.device(device)).weights for config in (tied, untied)]
        for device in ("cpu", "cuda")
    )
    assert on_cpu[0] == on_cpu[1] == on_gpu[1] > on_gpu[0]


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


# hidden size, layers, heads, KV heads, intermediate size, vocabulary: Qwen2.5-0.5B, Llama-3.2-1B, Llama-3.1-8B
SIZES = {
    "0.5B": (896, 24, 14, 2, 4864, 151_936),
    "1B": (2048, 16, 32, 8, 8192, 128_256),
    "8B": (4096, 32, 32, 8, 14_336, 128_256),
}


def sized(name: str, head: str):
    hidden, layers, heads, kv_heads, intermediate, vocabulary = SIZES[name]
    return AutoConfig.for_model(
        "llama",
        architectures=[f"LlamaFor{head}"],
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        max_position_embeddings=131_072,
        tie_word_embeddings=False,
        num_labels=1,
    )


class Allocated(TorchDispatchMode):
    """Bytes of the tensors that live, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.freed, storage._cdata)
        return output

    def freed(self, storage: int) -> None:
        self.now -= self.sizes.pop(storage)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("memory", [24, 80])
@pytest.mark.parametrize("models", [("0.5B", "0.5B"), ("1B", "1B"), ("8B", "1B")], ids="+".join)
def test_what_lives_at_once_is_within_the_plan(models, memory, device, monkeypatch):
    """Of an engine for as many slots as the plan grants, on tensors without memory: from short rows to the longest."""
    monkeypatch.setattr("rgtg.models.cache.view_length", lambda length, _: view_length(length, torch.device(device)))
    longest, new, k = 2304, 256, 10
    configs = sized(models[0], "CausalLM"), sized(models[1], "SequenceClassification")
    made = plan(
        [(configs[0], longest), (configs[1], longest + k)],
        torch.bfloat16,
        torch.device(device),
        memory=memory * 2**30,
        held=HELD,
    )
    slots = made.fitting(100_000)
    assert slots
    with FakeTensorMode(), Allocated() as allocated:
        language = AutoModelForCausalLM.from_config(configs[0], dtype=torch.bfloat16)
        reward = AutoModelForSequenceClassification.from_config(configs[1], dtype=torch.bfloat16)
        assert allocated.now == pytest.approx(made.weights, rel=1e-3)  # beside them, buffers of positions
        guidance = CandidateGuidance(RewardModel(reward, None, "scalar"), slots, k)
        rule = Rule(beta=1.0, k=k, vocabulary=configs[0].vocab_size)
        engine = Engine(LanguageModel(language, SimpleNamespace(eos_token_id=2)), guidance, rule, slots)
        if device == "cpu":  # it grows, while the first row is at work
            engine.owners[0] = (None, 0)
            for length in range(100, longest, 100):
                engine.reserve(length, new)
        engine.reserve(longest, new)
        assert allocated.peak + made.prompts < memory * 2**30 * (USABLE + 0.01)  # tokens and log-probabilities
        assert allocated.now >= made.weights + slots * made.slot
        if device == "cuda":  # longer rows, once all have ended: their caches come in place of the old ones
            engine.reserve(longest + 512, new)
            assert allocated.peak == allocated.now
