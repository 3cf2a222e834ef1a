"""One Ray for all tests of the jobs, and configs for tiny models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import generate
from pipelines.runtime.run_directory import RunDirectory
from rgtg import config_file, storage
from rgtg.config import Config
from rgtg.schemas import completions_schema, prompts_schema


@pytest.fixture(scope="session")
def ray_here():
    """An embedded Ray with logical CPUs for two actors, reading and the filter of done rows; jobs find it running."""
    import ray

    ray.init(address="local", num_cpus=5, include_dashboard=False, log_to_driver=False, object_store_memory=3 * 10**8)
    yield
    ray.shutdown()


@pytest.fixture
def configure(tmp_path, language_dir) -> Callable[..., Config]:
    """A config of a run in `tmp_path` on tiny models, with dotted settings over it."""

    def make(**changes: Any) -> Config:
        defaults = {
            "run.root": str(tmp_path / "runs"),
            "run.id": "test",
            "models.language": language_dir,
            "models.device": "cpu",
            "generate.samples": 2,
            "preferences.select": "best-worst",  # half as many completions as by default
            "preferences.truncated": "keep",  # of eight tokens most are
            "generate.max_new_tokens": 8,
            "generate.slots": 6,
            "generate.block_rows": 4,
            "train_reward.learning_rate": 3e-3,
            "train_reward.batch_size": 8,
            "train_reward.precision": "float32",
            "train_reward.threads": 1,
        }
        return config_file.load(None, [f"{key}={value}" for key, value in (defaults | changes).items()])

    return make


@pytest.fixture
def write_parquet(tmp_path) -> Callable[..., str]:
    """Columns to a Parquet file below `tmp_path`; its path."""

    def write(name: str, **columns: list) -> str:
        path = Path(tmp_path, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        return str(path)

    return write


@pytest.fixture
def read_rows() -> Callable[[str], list[dict[str, Any]]]:
    """All rows of the Parquet files in a directory, by prompt_id."""

    def read(directory: str) -> list[dict[str, Any]]:
        files = sorted(Path(directory).glob("*.parquet"))
        rows = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
        return sorted(rows, key=lambda row: row["prompt_id"])

    return read


def completion(token_ids, text, score, method="pargs", beta=2.0, finish="stop"):
    """Its rewards lead to the negative of its score, in equal steps."""
    n = len(token_ids)
    rewards = None if score is None else [-score * (i + 1) / n for i in range(n)]
    return {
        **{"text": text, "token_ids": token_ids, "num_tokens": n, "finish_reason": finish},
        **{"reward": rewards and rewards[-1], "score": score, "method": method, "beta": beta},
        "token_rewards": rewards,
        **{"logprob": -1.0, "guided_logprob": -0.5},
    }


@pytest.fixture
def finished(configure, tokenizer_of, language_dir):
    """A run whose completions are given: (prompt, [(text, score, ...) ...] or an error) a row; `columns`
    pass through.
    """

    tokenizer = tokenizer_of(language_dir)

    def made(text, *given):
        return completion(tokenizer(text, add_special_tokens=False).input_ids, text, *given)

    def make(rows, prompt_type=None, columns=None, **changes):
        config = configure(**changes)
        directory = RunDirectory(config.with_strategy())
        schema = completions_schema(prompts_schema(prompt_type or pa.string(), []))
        table = [
            {
                "prompt_id": f"id-{i}",
                "prompt": prompt,
                "completions": None if isinstance(c, str) else [made(*given) for given in c],
                "method": "pargs",
                "error": c if isinstance(c, str) else None,
            }
            for i, (prompt, c) in enumerate(rows)
        ]
        target = directory.path("completions")
        storage.make_directory(target)
        completions = pa.Table.from_pylist(table, schema=schema)
        for name, values in (columns or {}).items():
            completions = completions.append_column(name, [values])
        pq.write_table(completions, f"{target}/part.parquet")
        directory.begin(generate.STAGE, {"rows": len(rows), "generate.unguided_samples": 0})
        directory.finish(generate.STAGE, generate.count(target), 0)
        return config

    return make
