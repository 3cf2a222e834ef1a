"""The actor of generate, without Ray: what it does when its device runs out of memory."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch

from pipelines.generate_actor import Generator, memory_plan
from pipelines.runtime.fingerprints import model_digest
from rgtg.config import Generate, Models
from rgtg.decoding.decoder import Decoder
from rgtg.decoding.engine import Engine
from rgtg.errors import RowError, UserError
from rgtg.models.language import LanguageModel

PROMPTS = ["one", "two words", "three words here", "poison", "five"]


class Board:
    """What the driver would print."""

    def __init__(self):
        self.lines = []
        self.add = SimpleNamespace(remote=lambda **amounts: None)
        self.log = SimpleNamespace(remote=self.lines.append)


@pytest.fixture
def generator(language_dir, reward_dir):
    settings = Generate(prompts=["x"], samples=3, max_new_tokens=6, slots=32)
    models = Models(language=language_dir, device="cpu")

    def make():
        progress = Board()
        return Generator(models, reward_dir, settings, seed=5, progress=progress), progress

    make.arguments = models, reward_dir, settings, torch.device("cpu")
    return make


def complete(generator, prompts):
    batch = pa.table({"prompt_id": prompts, "prompt": prompts, "error": pa.nulls(len(prompts), pa.string())})
    return generator(batch).to_pylist()


@pytest.fixture
def memory(monkeypatch):
    """Let a step of the engine run out of memory where `full` says so."""
    step = Engine.step

    def limit(full):
        @torch.inference_mode()
        def stepped(engine):
            engine._refill()
            if full(engine):
                raise torch.OutOfMemoryError("out of memory")
            return step(engine)

        monkeypatch.setattr(Engine, "step", stepped)

    return limit


def test_slots_are_planned_before_anything_is_loaded(generator, monkeypatch):
    needed = memory_plan(*generator.arguments)
    room = int((needed.weights + needed.prompts + 20 * (needed.slot + needed.growing)) / 0.9)
    monkeypatch.setattr("pipelines.generate_actor.memory_of", lambda device: room)
    made, progress = generator()
    assert made.decoder.engine.slots == 16
    assert progress.lines == [
        f"an actor needs {memory_plan(*generator.arguments)}; it decodes with 16 slots instead of 32"
    ]
    assert complete(made, PROMPTS[:1])[0]["error"] is None
    monkeypatch.setattr("pipelines.generate_actor.memory_of", lambda device: needed.weights)
    with pytest.raises(UserError, match="use smaller models"):
        generator()


def test_fewer_slots_where_memory_runs_out_and_the_same_completions(generator, memory, language_dir, reward_dir):
    memory(lambda engine: engine.slots > 8)
    made, progress = generator()
    rows = complete(made, PROMPTS)
    assert progress.lines == [
        "a device ran out of memory with 32 slots; continuing with 16",
        "a device ran out of memory with 16 slots; continuing with 8",
    ]
    assert all(row["error"] is None for row in rows)
    expected = Decoder.load(language_dir, reward_dir, slots=8, device="cpu")
    requests = [expected.request(p, samples=3, max_new_tokens=6, seed=5, prompt_id=p) for p in PROMPTS]
    expected.engine.run(requests)
    for row, request in zip(rows, requests, strict=True):
        found = [c["token_ids"] for c in row["completions"]]
        assert found == [c.token_ids for c in expected.completions(request)]
    assert complete(made, ["more"])[0]["error"] is None, "it goes on with what has room"
    assert len(progress.lines) == 2, "said once"


def test_a_prompt_that_has_no_room_alone_is_a_row_with_an_error(generator, memory):
    memory(lambda engine: any(owner and owner[0].prompt_id == "poison" for owner in engine.owners))
    made, _ = generator()
    rows = complete(made, PROMPTS)
    errors = {row["prompt"]: row["error"] for row in rows}
    assert errors.pop("poison") == "the device has no memory for this prompt, even alone"
    assert set(errors.values()) == {None}
    assert made.decoder.engine.slots == 32, "the others have all slots again"


def test_an_error_of_a_row_that_is_not_known_is_no_row_of_all(generator, monkeypatch):
    """Rows with an error are committed: one that belongs to another row would stay there."""

    def step(engine):
        raise RowError("the tokenizer fails on the text")

    monkeypatch.setattr(Engine, "step", step)
    made, _ = generator()
    for _ in range(2):  # those that wait, and those that come later
        with pytest.raises(RuntimeError, match="the engine stopped: the tokenizer fails"):
            complete(made, PROMPTS)


def test_an_actor_refuses_a_model_that_changed_since_the_driver_saw_it(generator, make_language, tmp_path):
    """Another model under the same name, as when one is replaced while a night works."""
    place = Path(shutil.copytree(make_language(seed=8), tmp_path / "language"))
    _, reward, settings, _ = generator.arguments
    models = Models(language=str(place), device="cpu")
    digests = {str(place): model_digest(str(place)), reward: model_digest(reward)}
    Generator(models, reward, settings, seed=5, progress=Board(), digests=digests)
    shutil.copy(Path(make_language(seed=9), "model.safetensors"), place / "model.safetensors")
    with pytest.raises(UserError, match=rf"the model '{place}' changed while the job ran"):
        Generator(models, reward, settings, seed=5, progress=Board(), digests=digests)


def test_a_model_behind_links_is_seen_to_change(make_language, tmp_path):
    """As in a cache of the hub, whose snapshots are links to blobs."""
    blobs, snapshot = Path(make_language(seed=8)), tmp_path / "snapshot"
    snapshot.mkdir()
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    before = model_digest(str(snapshot))
    assert LanguageModel.load(str(snapshot), device="cpu").context == 128
    shutil.copy(Path(make_language(seed=9), "model.safetensors"), blobs / "model.safetensors")
    assert model_digest(str(snapshot)) != before
