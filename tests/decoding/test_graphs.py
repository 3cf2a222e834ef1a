"""Steps by graphs, against steps one by one. On CPU what a step launches is recorded op by op, and launched again on
the same memory, as a CUDA graph does.
"""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rgtg.decoding.decoder import Decoder
from rgtg.decoding.engine import Engine
from rgtg.decoding.graphs import MOST, Graphs, Watch
from rgtg.decoding.guidance import CandidateGuidance, NextTokenGuidance
from rgtg.decoding.policy import Rule
from rgtg.models.cache import ATTENTION
from rgtg.models.reward import RewardModel

PROMPTS = ["hello there", "", "A longer prompt, of more than thirty-two tokens.", "x", "hi", "the sixth", "7", "eight"]


class Recording(TorchDispatchMode):
    """Every op that runs, with the tensors that it read and wrote."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        self.ops.append((func, args, kwargs or {}, output))
        return output

    def replay(self):
        for func, args, kwargs, output in self.ops:
            for old, new in zip(tree_leaves(output), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():  # not a view, nor in place
                    old.copy_(new)


class Recorder:
    def __init__(self):
        self.recordings = []
        self.replays = 0

    def __call__(self, compute):
        recording = Recording()
        with recording:
            output = compute()
        self.recordings.append(recording)

        def replay():
            self.replays += 1
            recording.replay()
            return output

        return replay


def by_graphs(decoder, stride):
    recorder = Recorder()
    decoder.engine.use_graphs(recorder, stride)
    return recorder


METHODS = ["unguided", "pargs", "pargs-greedy", "rad", "pargs-best-of-n", "cards", "cd-blockwise"]


@pytest.mark.parametrize("method", METHODS)
def test_graphs_change_no_bit(language_dir, reward_dir, method):
    options = {"samples": 2, "max_new_tokens": 30}
    own = {"target_reward": 1.0} if method == "cards" else {"k": 5}
    expected = Decoder.load(language_dir, reward_dir, method, slots=8, **own).generate(PROMPTS, **options)
    decoder = Decoder.load(language_dir, reward_dir, method, slots=8, **own)
    recorder = by_graphs(decoder, stride=4)
    assert decoder.generate(PROMPTS, **options) == expected
    assert decoder.engine.graphs.trusted
    assert recorder.replays > 4 * len(recorder.recordings) > 0


@pytest.mark.parametrize("head", ["next-token", "log-probability"])
def test_next_tokens_by_graphs(language_dir, make_language, head, tmp_path):
    model = RewardModel.load(make_language(seed=3), head=head)
    torch.nn.init.normal_(model.head.weight)
    model.save(tmp_path)
    method = "farma" if head == "next-token" else "genarm"
    expected = Decoder.load(language_dir, str(tmp_path), method, slots=8).generate(PROMPTS, max_new_tokens=30)
    decoder = Decoder.load(language_dir, str(tmp_path), method, slots=8)
    recorder = by_graphs(decoder, stride=3)
    assert decoder.generate(PROMPTS, max_new_tokens=30) == expected
    assert recorder.replays > 4 * len(recorder.recordings) > 0


@pytest.mark.parametrize("stride", [2, 8, 100])
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_rows_that_end_between_two_looks_stay_as_they_ended(make_language, make_reward, arch, stride):
    """Some by an EOS, some at a limit, some at the end of the context, beyond which there are no positions."""
    options = {"samples": 3, "max_new_tokens": 400}
    places = make_language(arch=arch), make_reward(arch=arch)
    expected = Decoder.load(*places, "pargs", slots=8).generate(PROMPTS, **options)
    assert {c.finish_reason for row in expected for c in row} == {"stop", "length"}
    decoder = Decoder.load(*places, "pargs", slots=8)
    decoder.engine.stride = stride
    assert decoder.generate(PROMPTS, **options) == expected


def test_longer_prompts_later_are_recorded_anew(language_dir, reward_dir):
    """Caches grow, and with them the memory that a graph knows."""
    texts = ["a" * n for n in (5, 40, 70, 90)]
    decoder, plain = (Decoder.load(language_dir, reward_dir, "pargs", slots=8) for _ in range(2))
    by_graphs(decoder, stride=4)
    for i, text in enumerate(texts):
        options = {"max_new_tokens": 12 + 5 * i}
        assert decoder.generate([text], **options) == plain.generate([text], **options)
    assert decoder.engine.graphs.trusted


def test_a_graph_that_repeats_something_else_is_not_used(language_dir, reward_dir, caplog):
    decoder, plain = (Decoder.load(language_dir, reward_dir, "pargs", slots=8) for _ in range(2))

    def forgetful(compute):
        replay = Recorder()(compute)
        return lambda: replay() + 1

    decoder.engine.use_graphs(forgetful, 4)
    options = {"max_new_tokens": 30}
    assert decoder.generate(PROMPTS, **options) == plain.generate(PROMPTS, **options)
    assert not decoder.engine.graphs.replays
    assert caplog.messages == [
        "a CUDA graph did not repeat a step bit for bit: steps are launched kernel by kernel, which is slower"
    ]


def test_a_step_that_waits_for_a_value_is_not_recorded(caplog):
    counter, recorder = torch.zeros(1), Recorder()

    def compute():
        counter.add_(1)
        return counter * counter.item()

    graphs = Graphs(compute, lambda: [counter], recorder)
    assert [graphs("shape").item() for _ in range(3)] == [1, 4, 9]
    assert recorder.recordings == []
    assert caplog.messages == [
        "a CUDA graph could not be recorded (a step waits for aten._local_scalar_dense.default): steps are launched "
        "kernel by kernel, which is slower"
    ]


@pytest.mark.parametrize("error", [RuntimeError("not supported\nat all"), torch.OutOfMemoryError("no memory")])
def test_where_recording_fails_steps_are_computed(caplog, error):
    """Also for want of memory: a step had enough, and a row must not fail for a graph."""
    counter = torch.zeros(1)

    def compute():
        return counter.add_(1) * 2

    def record(compute):
        raise error

    graphs = Graphs(compute, lambda: [counter], record)
    assert [graphs("shape").item() for _ in range(3)] == [2, 4, 6]
    assert len(caplog.messages) == 1
    assert f"could not be recorded ({str(error).splitlines()[0]})" in caplog.messages[0]


def test_as_many_graphs_are_kept_as_are_of_use():
    graphs = Graphs(lambda: torch.zeros(1), list, Recorder())
    for shape in range(MOST + 5):
        graphs(shape)
    assert list(graphs.replays) == list(range(5, MOST + 5))


@torch.inference_mode()
@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen2", "qwen3"])
@pytest.mark.parametrize("sees", ["nothing", "candidates", "next tokens"])
@pytest.mark.parametrize("greedy", [True, False])
def test_a_step_takes_nothing_from_the_host_and_asks_for_nothing(make_language, make_reward, arch, sees, greedy):
    """A copy from the host would wait for the device, as would a value that is asked for; on `meta` there are none."""
    config, other = (AutoConfig.from_pretrained(make(arch=arch)) for make in (make_language, make_reward))
    with torch.device("meta"):
        language = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)
        scalar = AutoModelForSequenceClassification.from_config(other, attn_implementation=ATTENTION)
    guidance = {
        "nothing": lambda: None,
        "candidates": lambda: CandidateGuidance(RewardModel(scalar, None, "scalar"), 8, 5),
        "next tokens": lambda: NextTokenGuidance(RewardModel(language, None, "log-probability"), 8),
    }[sees]()
    rule = Rule(beta=1.0, k=5, greedy=greedy, temperature=0.7, top_p=0.9, reading="log-sigmoid")
    engine = Engine(SimpleNamespace(model=language, device=torch.device("meta"), eos_ids=[2]), guidance, rule, 8)
    for owner in filter(None, (engine.language, guidance)):
        owner.reserve(40)
        owner.look()
    engine.reserve(40, 10)
    with Watch() as watch:
        logits = engine._compute()
    assert logits.device.type == "meta"
    assert watch.asked is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["unguided", "pargs", "pargs-best-of-n"])
@pytest.mark.parametrize("length", [20, 250, 400])
def test_cuda_graphs_change_no_bit(make_language, make_reward, method, dtype, length):
    """In every bucket of the view that such texts come through."""
    longer = {"max_position_embeddings": 1024}
    places = make_language(**longer), make_reward(**longer)
    prompts = [text + "a" * length for text in PROMPTS]
    graphs, eager = (
        Decoder.load(*places, method, slots=8, device="cuda", dtype=dtype, cuda_graphs=wanted)
        for wanted in (True, False)
    )
    options = {"samples": 2, "max_new_tokens": 300}
    assert graphs.generate(prompts, **options) == eager.generate(prompts, **options)
    assert graphs.engine.graphs.trusted
    assert graphs.engine.graphs.replays
