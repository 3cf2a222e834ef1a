"""No reader of files unpickles: each one is found by its call, and tried with a table that would run code."""

import ast
import pickle
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from pipelines import generate, pairs, pairs_worker, prompts, train_reward
from pipelines.experiments import dpo
from pipelines.runtime.job_context import JobContext
from rgtg import table_files
from rgtg.config import Config
from rgtg.errors import UserError
from rgtg.input_files import InputFile, find
from tests.hostile import Trap, hostile_table

ROOT = Path(__file__).parents[2]

# Calls that read tables or objects of a file, by the last part of their name. `read_parquet` is Ray's.
READING = {
    *("ParquetFile", "ParquetDataset", "read_table", "read_schema", "read_metadata", "read_pandas", "read_feather"),
    *("open_file", "open_stream", "ORCFile", "read_parquet", "read_orc", "read_csv", "read_json", "read_numpy"),
    *("read_binary_files", "read_images", "read_datasource", "from_huggingface", "load_dataset", "load_from_disk"),
    *("from_parquet", "from_json", "from_csv", "from_generator"),
    *("load", "loads", "Unpickler", "read_pickle", "joblib"),
}
# Where they may stand, and why nothing is unpickled there.
ALLOWED = {
    ("rgtg/parquet.py", "ParquetFile"): "the footer is plain",
    ("pipelines/generate.py", "read_parquet"): "check_tables stands before it",
    ("pipelines/train_reward.py", "read_parquet"): "check_tables stands before it",
    ("rgtg/input_rows.py", "read_csv"): "all its columns are text",
    ("pipelines/pairs_worker.py", "open_stream"): "bytes that this job has made of a plain table",
}
HARMLESS = {"json", "yaml", "storage", "config_file", "Decoder", "RewardModel", "LanguageModel", "TextReward", "cls"}


def readers() -> set[tuple[str, str]]:
    found = set()
    for path in [*ROOT.glob("rgtg/**/*.py"), *ROOT.glob("pipelines/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            of = getattr(node.func.value, "id", "") if isinstance(node.func, ast.Attribute) else ""
            if name == "load" and of == "torch":  # without pickle, by its own word
                assert any(k.arg == "weights_only" and k.value.value is True for k in node.keywords)  # type: ignore
            elif name == "from_pretrained" and of.startswith("AutoModel"):
                assert any(k.arg == "use_safetensors" and k.value.value is True for k in node.keywords), path  # type: ignore
            elif name in READING and of not in HARMLESS and not (name == "load" and not of):
                found.add((str(path.relative_to(ROOT)), name))
    return found


def test_there_are_no_other_readers():
    assert readers() == ALLOWED.keys()


@pytest.fixture
def trap(tmp_path) -> Trap:
    return Trap(tmp_path)


def test_prompts(tmp_path, trap):
    pq.write_table(hostile_table(trap, prompt=["one"]), tmp_path / "a.parquet")
    prompts.take_in(find([str(tmp_path / "a.parquet")]), str(tmp_path / "prompts"), max_error_rate=0.1)
    (row,) = pq.read_table(tmp_path / "prompts").to_pylist()
    assert row["prompt"] == "one"
    assert row["plain"] == row["list"][0] == pickle.dumps(trap)
    assert not trap.sprung


@pytest.mark.parametrize("column", ["chosen", "completions", "prompt"])
def test_pairs(tmp_path, trap, column):
    table = hostile_table(trap, prompt=["p"], chosen=["a"], rejected=["b"])
    names = {"plain": column, column: f"other {column}"}
    pq.write_table(
        table.rename_columns([names.get(name, name) for name in table.column_names]), tmp_path / "a.parquet"
    )
    file = InputFile(str(tmp_path), str(tmp_path / "a.parquet"), 0)
    assert pairs._fault(file) is None
    assert [row for raw in pairs_worker.raw_rows(file) for row in raw.rows()]
    assert not trap.sprung


def test_pairs_of_the_comparison_by_dpo(tmp_path, trap, language_dir, monkeypatch):
    trained = []

    class Trainer:
        def __init__(self, **given):
            trained.append(given)

        def train(self): ...

        def save_model(self, out): ...

    trl = SimpleNamespace(DPOConfig=lambda **_: None, DPOTrainer=Trainer)
    monkeypatch.setitem(sys.modules, "trl", trl)
    pq.write_table(hostile_table(trap, prompt=["p"], chosen=["a"], rejected=["b"]), tmp_path / "a.parquet")
    dpo.main(out=tmp_path / "out", language=language_dir, pairs=str(tmp_path / "a.parquet"))
    assert list(trained[0]["train_dataset"]) == [{"prompt": "p", "chosen": "a", "rejected": "b"}]
    assert not trap.sprung


def test_tables_of_a_run(tmp_path, trap):
    pq.write_table(hostile_table(trap, prompt_id=["a"], error=["e"]), tmp_path / "part.parquet")
    (table,) = table_files.read_tables(str(tmp_path))
    assert table.to_pylist()[0]["plain"] == pickle.dumps(trap)
    assert not trap.sprung
    with pytest.raises(UserError, match="part.parquet' has columns of extension types"):
        table_files.check_tables(str(tmp_path))


def taken_in(config: Config) -> JobContext:
    """A job whose prompts are taken in."""
    job = JobContext.open(config, prompts=True)
    prompts.run_stage(job)
    return job


def test_tables_of_a_run_are_checked_before_ray_reads_them(configure, write_parquet, tmp_path, trap, monkeypatch):
    monkeypatch.setattr(ray.data, "read_parquet", lambda *_, **__: pytest.fail("Ray was to read it"))
    monkeypatch.setattr("pipelines.runtime.ray_session.start", lambda config: None)
    config = configure(**{"generate.prompts": write_parquet("a.parquet", prompt=["one"])})
    job = taken_in(config)
    directory = job.directory
    pq.write_table(hostile_table(trap, prompt_id=["a"], prompt=["x"]), directory.path("prompts", "part-00001.parquet"))
    with pytest.raises(UserError, match="extension types"):
        generate.complete(job, None, str(tmp_path / "target"), None)
    pairs_place = Path(directory.path("pairs"))
    pairs_place.mkdir()
    pq.write_table(hostile_table(trap, split=["train"]), pairs_place / "part.parquet")
    with pytest.raises(UserError, match="extension types"):
        train_reward._dataset(str(pairs_place), "train")
    assert not trap.sprung


class Asked(Exception):
    """Ray would begin to read."""


@pytest.fixture
def asked(monkeypatch) -> list[list[str]]:
    """What Ray is asked to read, by name; it is not."""
    paths: list[list[str]] = []

    def read_parquet(given, **options):
        # Else a directory above the run that is called key=value adds a column to its rows.
        assert options["partitioning"] is None
        paths.append([given] if isinstance(given, str) else list(given))
        raise Asked

    monkeypatch.setattr(ray.data, "read_parquet", read_parquet)
    monkeypatch.setattr("pipelines.runtime.ray_session.start", lambda config: None)
    monkeypatch.setattr(generate, "Progress", lambda *_: nullcontext(SimpleNamespace(actor=None)))
    return paths


HIDDEN = ["evil.PARQUET", "sub/_evil.parquet", "sub/evil.Parquet", "sub/.x/evil.parquet"]


def hide(place: str, name: str, trap: Trap) -> None:
    """A table that would run code, where Ray looks and we do not."""
    Path(place, name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(hostile_table(trap, prompt_id=["a"], split=["train"]), Path(place, name))


def test_ray_reads_the_tables_that_were_checked_and_no_other(configure, write_parquet, tmp_path, trap, asked):
    config = configure(**{"generate.prompts": write_parquet("a.parquet", prompt=["one"])})
    job = taken_in(config)
    directory = job.directory
    pairs_place = Path(directory.path("pairs"))
    pairs_place.mkdir()
    pq.write_table(pa.table({"split": ["train"]}), pairs_place / "part.parquet")
    for name in HIDDEN:
        hide(directory.path("prompts"), name, trap)
        hide(str(pairs_place), name, trap)
    with pytest.raises(Asked):
        generate.complete(job, None, str(tmp_path / "target"), None)
    with pytest.raises(Asked):
        train_reward._dataset(str(pairs_place), "train")
    assert asked == [[directory.path("prompts", "part-00000.parquet")], [str(pairs_place / "part.parquet")]]


@pytest.mark.parametrize("name", HIDDEN)
def test_what_ray_lists_itself_holds_nothing_but_tables(configure, write_parquet, tmp_path, trap, asked, name):
    config = configure(**{"generate.prompts": write_parquet("a.parquet", prompt=["one"])})
    job, checkpoint = taken_in(config), str(tmp_path / "_checkpoint")
    hide(checkpoint, name, trap)
    pq.write_table(pa.table({"prompt_id": ["a"]}), Path(checkpoint, "a.pending.parquet"))
    with pytest.raises(UserError, match="is no file of the run"):
        generate.complete(job, None, str(tmp_path / "target"), checkpoint)
    assert not asked


def test_a_chunk_of_raw_rows_holds_no_extension_type(tmp_path, trap):
    pq.write_table(hostile_table(trap, prompt=["p"], chosen=["a"], rejected=["b"]), tmp_path / "a.parquet")
    files = pa.table({"uri": [str(tmp_path)], "path": [str(tmp_path / "a.parquet")], "eval_fraction": [0.0]})
    for chunk in pairs_worker.chunks(files):
        assert pa.ipc.open_stream(chunk["rows"][0].as_py()).read_all().num_rows == 1
    assert not trap.sprung
