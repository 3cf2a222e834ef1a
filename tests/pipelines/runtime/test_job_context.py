"""A job resolves its config once, opens its run directory once and reads its inputs once, whatever its stages."""

from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray import train

from pipelines import generate, judges, nightly, pairs, pairs_worker, prompt_rows, summary, train_reward
from pipelines.runtime import fingerprints, job_context, run_directory
from rgtg import digests, table_files
from rgtg.schemas import completions_schema


class Silent:
    """Progress without an actor."""

    actor = None

    def __init__(self, *_) -> None:
        self.totals: dict[str, float] = {}

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *exception: object) -> None: ...


class Completing:
    """Ray's dataset of the prompts, which writes two completions of each without a model."""

    def __init__(self, paths, **options) -> None:
        self.prompts = pa.concat_tables(pq.read_table(path) for path in paths)

    def limit(self, num_rows: int) -> "Completing":
        self.prompts = self.prompts.slice(0, num_rows)
        return self

    def repartition(self, **options) -> "Completing":
        return self

    def map_batches(self, actor, **options) -> "Completing":
        return self

    def write_parquet(self, path: str, **options) -> None:
        completion = {"num_tokens": 1, "finish_reason": "stop", "method": "pargs", "beta": 2.0}
        both = [completion | {"text": text, "token_ids": [i], "score": float(i)} for i, text in enumerate("ab")]
        rows = [row | {"completions": both, "method": "pargs"} for row in self.prompts.to_pylist()]
        schema = completions_schema(self.prompts.schema)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), f"{path}/part.parquet")


@pytest.fixture
def without_ray(monkeypatch, make_reward, tmp_path):
    """What the driver of a night does, and nothing that Ray does for it."""

    def write_pairs(files, tokenize, seed, target):
        row = {"prompt_ids": [5], "chosen_ids": [6], "rejected_ids": [7], "common": 0}
        rows = [row | {"split": split} for split in ["train"] * 8 + ["eval"]]
        table_files.write_table(f"{target}/part.parquet", pa.Table.from_pylist(rows, schema=pairs_worker.SCHEMA))

    def trainer(task, settings, *args, **options):
        trained = tmp_path / f"trained-{settings.objective}"
        trained.mkdir()
        (trained / "model").symlink_to(make_reward(seed=len(settings.objective)))
        (trained / "training.jsonl").write_text("")
        accuracy = {"by_fraction": {"1.0": 0.9}, "by_length": {}, "by_score": {"final": 0.9}, "score": "final"}
        metrics = {"accuracy": accuracy | {"pairs": {}}}
        result = SimpleNamespace(checkpoint=train.Checkpoint(str(trained)), metrics=metrics)
        return SimpleNamespace(fit=lambda: result)

    @contextmanager
    def judging(job, uri, *_):
        job.digests.model(uri)  # which the actors compare
        yield lambda prompts, texts: [float(len(text)) for text in texts]

    monkeypatch.setattr(judges, "judging", judging)
    monkeypatch.setattr("pipelines.runtime.ray_session.start", lambda config: None)
    monkeypatch.setattr(pairs, "_write", write_pairs)
    monkeypatch.setattr(train_reward, "_trainer", trainer)
    monkeypatch.setattr(ray.data, "read_parquet", Completing)
    monkeypatch.setattr(train_reward, "Progress", Silent)
    monkeypatch.setattr(generate, "Progress", Silent)


@pytest.fixture
def calls(monkeypatch) -> Counter[str]:
    """How often a config is resolved, a manifest read, a file digested, and input files listed and read."""
    counted: Counter[str] = Counter()

    def count(module, name, what):
        before = getattr(module, name)

        def call(*args, **options):
            counted[what(*args)] += 1
            return before(*args, **options)

        monkeypatch.setattr(module, name, call)

    count(job_context, "resolved", lambda config: "the config")
    count(run_directory, "manifest_of", lambda place: "the manifest")
    for module in (digests, fingerprints):
        count(module, "file_digest", lambda place, path: f"digest {path}")
    count(fingerprints, "find", lambda places: f"listing {places}")
    count(prompt_rows, "read_rows", lambda file: f"content {file.path}")
    return counted


def test_a_night_resolves_and_digests_each_thing_once_and_reads_prompts_twice(
    configure, write_parquet, language_dir, without_ray, calls, capsys
):
    asked = [write_parquet(f"asked/{name}.parquet", prompt=[f"{name}{i}:" for i in range(6)]) for name in "ab"]
    given = [write_parquet("pairs.parquet", prompt=["p"] * 8, chosen=["x"] * 8, rejected=["y"] * 8)]
    held_out = [write_parquet("eval.parquet", prompt=["q"], chosen=["x"], rejected=["y"])]
    config = configure(
        **{
            "generate.prompts": str(Path(asked[0]).parent),
            "train_reward.pairs": given[0],
            "train_reward.eval_pairs": held_out[0],
            "nightly.baseline_prompts": 4,
            "nightly.compare_objectives": True,
        }
    )
    for start in ("new", "complete already"):
        calls.clear()
        directory = nightly.run(config)
        models = [language_dir, directory.path("reward_model"), directory.path("reward_model_full")]
        weights = [str(file) for model in models for file in Path(model).iterdir()]
        digested = {f"digest {path}" for path in [*asked, *given, *held_out, *weights]}
        listed = {f"listing {places}" for places in ([str(Path(asked[0]).parent)], given, held_out)}
        read = {f"content {path}" for path in asked} if start == "new" else set()
        assert calls == Counter(["the config", "the manifest", *listed, *digested, *read, *read])
    assert directory.counts(generate.STAGE)["rows"] == 12
    assert directory.counts(summary.BASELINE)["rows"] == 4
    assert list(summary.accuracies(directory)) == ["partial", "full"]
    assert "nothing to do" in capsys.readouterr().out
