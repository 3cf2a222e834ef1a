"""Steps by graphs, against steps one by one. On CPU what a step launches is recorded op by op, and launched again on
the same memory, as a CUDA graph does.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rgtg.decoding.cuda_graphs import MOST, RETRY, Graphs
from rgtg.decoding.decoder import Decoder
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
        "a CUDA graph did not repeat a step bit for bit: all steps are launched kernel by kernel, which is slower"
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
        "a CUDA graph could not be captured (a step waits for aten._local_scalar_dense.default): steps of its shape "
        "are launched kernel by kernel, which is slower; it is tried once more after 100 of them"
    ]


class Failing(Recorder):
    """Records nothing the first `times`."""

    def __init__(self, times, error=RuntimeError("not supported\nat all")):  # noqa: B008
        super().__init__()
        self.times, self.error, self.tried = times, error, 0

    def __call__(self, compute):
        self.tried += 1
        if self.tried <= self.times:
            compute()  # a part of it, at least
            raise self.error
        return super().__call__(compute)


def counting(recorder):
    """Steps by graphs that count, and what they count in."""
    counter = torch.zeros(1)
    return Graphs(lambda: counter.add_(1) * 2, lambda: [counter], recorder)


@pytest.mark.parametrize("error", [RuntimeError("not supported\nat all"), torch.OutOfMemoryError("no memory")])
def test_where_recording_fails_steps_are_computed(caplog, error):
    """Also for want of memory: a step had enough, and a row must not fail for a graph."""
    recorder = Failing(2, error)
    graphs = counting(recorder)
    assert [graphs("shape").item() for _ in range(3 * RETRY)] == [2.0 * n for n in range(1, 3 * RETRY + 1)]
    assert recorder.tried == 2
    first, second = caplog.messages
    assert f"could not be captured ({str(error).splitlines()[0]})" in first
    assert first.endswith(f"which is slower; it is tried once more after {RETRY} of them")
    assert second.endswith("which is slower")


def test_a_failed_recording_is_tried_once_more():
    recorder = Failing(1)
    graphs = counting(recorder)
    assert [graphs("shape").item() for _ in range(RETRY + 5)] == [2.0 * n for n in range(1, RETRY + 6)]
    assert recorder.tried == 2
    assert recorder.replays == 5  # one of them to be trusted
    assert not graphs.failed


def test_a_failed_recording_is_that_of_its_shape_alone():
    recorder = Failing(1)
    graphs = counting(recorder)
    for shape in "abaab":
        graphs(shape)
    assert list(graphs.replays) == ["b"]
    assert graphs.trusted


@pytest.mark.parametrize("times", [1, 2, 1000])
def test_completions_are_the_same_where_recording_fails(language_dir, reward_dir, times):
    decoder, plain = (Decoder.load(language_dir, reward_dir, "pargs", slots=8) for _ in range(2))
    recorder = Failing(times)
    decoder.engine.use_graphs(recorder, 4)
    for longest in (5, 30, 60):  # caches that grow: new shapes
        options = {"samples": 2, "max_new_tokens": longest}
        assert decoder.generate(PROMPTS, **options) == plain.generate(PROMPTS, **options)
    assert decoder.engine.graphs.trusted
    assert bool(recorder.replays) == (times < 1000)


def test_one_graph_that_repeats_something_else_ends_them_all(caplog):
    def record(compute):
        replay = Recorder()(compute)
        return replay if len(graphs.replays) == 0 else lambda: replay() + 1

    graphs = counting(record)
    assert [graphs(shape).item() for shape in "aabba"] == [2, 4, 6, 8, 10]
    assert not graphs.trusted
    assert not graphs.replays
    assert len(caplog.messages) == 1


def test_as_many_graphs_are_kept_as_are_of_use():
    graphs = Graphs(lambda: torch.zeros(1), list, Recorder())
    for shape in range(MOST + 5):
        graphs(shape)
    assert list(graphs.replays) == list(range(5, MOST + 5))
    failing = counting(Failing(2 * MOST))
    for shape in range(MOST + 5):
        failing(shape)
    assert len(failing.failed) == MOST


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


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["unguided", "pargs", "pargs-best-of-n"])
def test_a_step_on_a_card_waits_for_nothing(language_dir, reward_dir, method):
    """Not even inside a kernel, where `Watch` sees nothing."""
    decoder = Decoder.load(language_dir, reward_dir, method, slots=8, device="cuda", cuda_graphs=False)
    compute = decoder.engine._compute

    def strict():
        torch.cuda.set_sync_debug_mode("error")
        try:
            return compute()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    decoder.engine._compute = strict
    decoder.generate(PROMPTS, max_new_tokens=5)
