"""Preference pairs from the run's completions: best against worst of each prompt. Cheap to run again."""

import time
from collections import Counter
from typing import Any

import pyarrow as pa

from pipelines import generate
from pipelines.runtime.job_context import JobContext
from pipelines.runtime.job_log import log
from pipelines.runtime.run_directory import RunDirectory
from rgtg import storage, table_files
from rgtg.config import Config
from rgtg.errors import UserError
from rgtg.preferences.selection import best_and_worst, fraction
from rgtg.report.card import dataset_card
from rgtg.schemas import preferences_schema

STAGE = "preferences"
FILE_ROWS = 100_000
COLUMNS = [
    *("prompt_id", "prompt", "method", "error"),
    *("completions.list.element.text", "completions.list.element.reward"),
]


def run(config: Config) -> RunDirectory:
    """The stage alone, as a command."""
    job = JobContext.open(config, models=False)
    run_stage(job)
    return job.directory


def run_stage(job: JobContext) -> None:
    """Select the pairs of completions/ into preferences/, which `datasets.load_dataset` reads."""
    directory, settings = job.directory, job.config.preferences
    if not directory.is_done(generate.STAGE):
        raise UserError(f"the run {directory.uri!r} has no finished completions; run generate first")
    inputs = {"completions": directory.fingerprint_of(generate.STAGE)} | {
        f"preferences.{name}": value for name, value in settings.model_dump().items()
    }
    if directory.begin(STAGE, inputs, rerunnable=True) == "done":
        return
    begun = time.monotonic()
    source, target = directory.path("completions"), directory.path("preferences")
    storage.remove(target)
    storage.make_directory(target)
    counts: Counter[str] = Counter()
    writers: dict[str, _Writer] = {}
    for table in table_files.read_tables(source, COLUMNS):
        if not writers:
            schema = preferences_schema(table.schema.field("prompt").type)
            writers = {split: _Writer(target, split, schema) for split in ("train", "test")}
        for row in table.to_pylist():
            if row["error"] is not None:
                counts["prompts with an error"] += 1
                continue
            selected = best_and_worst(row["completions"], settings.min_margin)
            if isinstance(selected, str):
                counts[selected] += 1
                continue
            # By prompt_id alone, so that a prompt is in the same split in every run.
            split = "test" if fraction(f"split/{row['prompt_id']}") < settings.test_fraction else "train"
            writers[split].add(_pair(row, *selected))
    for writer in writers.values():
        writer.close()
    sizes = {split: writer.total for split, writer in writers.items()}
    dropped = "".join(f"\n  {n} without a pair: {reason}" for reason, n in counts.most_common())
    log.info(f"preferences: {sizes.get('train', 0)} training pairs, {sizes.get('test', 0)} test pairs{dropped}")
    if not any(sizes.values()):
        raise UserError(f"none of the {counts.total()} prompts of {source!r} has a pair; see the reasons above")
    margin = sum(writer.margin for writer in writers.values()) / sum(sizes.values())
    totals = {**sizes, "dropped": dict(counts), "mean_margin": round(margin, 4)}
    card = dataset_card(directory.config_of(generate.STAGE), sizes)
    storage.write_bytes(storage.join(target, "README.md"), card.encode())
    directory.finish(STAGE, totals, time.monotonic() - begun)


class _Writer:
    """Writes one split in files of a bounded number of rows."""

    def __init__(self, target: str, split: str, schema: pa.Schema) -> None:
        self.target, self.split, self.schema = target, split, schema
        self.rows: list[dict[str, Any]] = []
        self.num_files = self.total = 0
        self.margin = 0.0  # the sum

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.margin += row["margin"]
        self.total += 1
        if len(self.rows) == FILE_ROWS:
            self._flush()

    def close(self) -> None:
        if self.rows:
            self._flush()

    def _flush(self) -> None:
        path = storage.join(self.target, f"{self.split}-{self.num_files:05d}.parquet")
        table_files.write_table(path, pa.Table.from_pylist(self.rows, schema=self.schema))
        self.rows, self.num_files = [], self.num_files + 1


def _pair(row: dict[str, Any], best: dict[str, Any], worst: dict[str, Any]) -> dict[str, Any]:
    """A row of TRL's columns. Text continues a prompt of text; one assistant turn answers a prompt of messages."""

    def response(text: str) -> Any:
        return text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]

    return {
        "prompt": row["prompt"],
        "chosen": response(best["text"]),
        "rejected": response(worst["text"]),
        "score_chosen": best["reward"],
        "score_rejected": worst["reward"],
        "margin": best["reward"] - worst["reward"],
        "prompt_id": row["prompt_id"],
        "method": row["method"],
    }


if __name__ == "__main__":
    from pipelines.runtime.launch import main

    main(run)
