"""Preference pairs or rankings of the run's completions, by one of the strategies of selection; cheap to run again."""

import time
from collections import Counter
from typing import Any

import pyarrow as pa

from pipelines import generate, report, summary
from pipelines.completions import COLUMNS, completions_of
from pipelines.runtime.job_context import JobContext
from pipelines.runtime.job_log import log
from pipelines.runtime.run_directory import RunDirectory
from rgtg import schemas, storage, table_files
from rgtg.config import Config, Preferences
from rgtg.errors import UserError
from rgtg.methods import STRATEGIES
from rgtg.passed_through import as_type, loadable
from rgtg.preferences.selection import Night, Rules, Statistics, candidates, fraction, select
from rgtg.report import warnings
from rgtg.report.card import dataset_card

STAGE = "preferences"
FILE_ROWS = 100_000
# Columns of each completion of a pair or a ranking, and what they are in completions/.
OF_EACH = {
    **{name: name for name in ("index", "method", "logprob", "guided_logprob")},
    **{"tokens": "num_tokens", "finish": "finish_reason"},
}
OWN = [*schemas.COMPLETION_COLUMNS]


def run(config: Config) -> RunDirectory:
    """The stage alone, as a command."""
    job = JobContext.open(config, models=False)
    run_stage(job)
    summary.write(job.directory)
    report.write(job.directory)
    return job.directory


def run_stage(job: JobContext) -> None:
    """Select the pairs of completions/ into preferences/, which `datasets.load_dataset` reads."""
    directory, config, settings = job.directory, job.config, job.config.preferences
    assert settings.select  # the job has filled it in
    if not directory.is_done(generate.STAGE):
        raise UserError(f"the run {directory.uri!r} has no finished completions; run generate first")
    _check_pools(job)
    inputs = {"completions": directory.fingerprint_of(generate.STAGE)} | {
        f"preferences.{name}": value for name, value in settings.model_dump().items()
    }
    if directory.begin(STAGE, inputs, rerunnable=True) == "done":
        return
    begun = time.monotonic()
    source = directory.path("completions")
    counts = _make(source, directory.path("preferences"), settings, config.run.id)
    what = "rankings" if STRATEGIES[settings.select].key is None else "pairs"
    dropped = "".join(f"\n  {n} without a pair: {reason}" for reason, n in counts["dropped"].items())
    log.info(f"preferences: {counts['train']} {what} to train on, {counts['test']} to test on{dropped}")
    if not counts["train"] + counts["test"]:
        raise UserError(
            f"none of the {sum(counts['dropped'].values())} prompts of {source!r} has a pair; see the reasons above"
        )
    said = summary.warnings_of(directory, counts)
    card = dataset_card(directory.config_of(generate.STAGE), settings, counts, said)
    storage.write_bytes(directory.path("report", "README.md"), card.encode())
    directory.finish(STAGE, counts, time.monotonic() - begun)
    if weak := warnings.of_preferences(counts):
        log.warning(f"preferences: WARNING: {weak}")


def _make(source: str, target: str, settings: Preferences, run_id: str) -> dict[str, Any]:
    """Write the pairs or rankings of the completions at `source` to `target`, and return their counts."""
    assert settings.select
    rules = Rules(**settings.model_dump(include={"truncated", "min_margin", "max_similarity", "length"}))
    night = _night(source, rules) if settings.length == "residual" or settings.select == "best-near" else Night()
    storage.remove(target)
    storage.make_directory(target)
    ranked = STRATEGIES[settings.select].key is None
    dropped: Counter[str] = Counter()
    margins = 0.0  # the sum
    completions_schema = table_files.schema_of(source)
    passed_through = loadable(schemas.passed_through(completions_schema))
    schema_of = schemas.rankings_schema if ranked else schemas.preferences_schema
    schema = schema_of(completions_schema.field("prompt").type, passed_through)
    writers = {split: _Writer(target, split, schema) for split in ("train", "test")}
    for table in table_files.read_tables(source, [*COLUMNS, *(field.name for field in passed_through)]):
        made: dict[str, dict[int, dict[str, Any]]] = {split: {} for split in writers}  # by the row of the prompt
        for number, row in enumerate(table.select(OWN).to_pylist()):
            if row["error"] is not None:
                dropped["prompts with an error"] += 1
                continue
            completions = completions_of(row)
            selected = select(candidates(completions, rules), settings.select, rules, night, row["prompt_id"])
            if isinstance(selected, str):
                dropped[selected] += 1
                continue
            of_selected = [completions[candidate.index] | {"index": candidate.index} for candidate in selected]
            margins += of_selected[0]["score"] - of_selected[-1]["score"]
            # By prompt_id alone, so that a prompt is in the same split in every run.
            split = "test" if fraction(f"split/{row['prompt_id']}") < settings.test_fraction else "train"
            pair = _ranking(row, of_selected) if ranked else _pair(row, *of_selected)
            made[split][number] = pair | {"run_id": run_id, "strategy": settings.select}
        for split, writer in writers.items():
            writer.add(table, made[split])
    for writer in writers.values():
        writer.close()
    sizes = {split: writer.total for split, writer in writers.items()}
    mean_margin = round(margins / max(1, sum(sizes.values())), 4)
    return {**sizes, "dropped": dict(dropped.most_common()), "mean_margin": mean_margin}


def _check_pools(job: JobContext) -> None:
    """Raises UserError where the run's completions are not of the kinds that the strategy pairs."""
    strategy = job.config.preferences.select or "best-worst"
    made = job.directory.config_of(generate.STAGE).generate
    for pool in ("unguided", "opposed"):
        wanted = pool in (STRATEGIES[strategy].chosen, STRATEGIES[strategy].rejected)
        if wanted and not getattr(made, f"{pool}_samples"):
            raise UserError(
                f"preferences.select={strategy} pairs {pool} completions, and the run {job.directory.uri!r} has none; "
                f"use another strategy, or another run.id with generate.{pool}_samples"
            )


def _night(source: str, rules: Rules) -> Night:
    """What selection needs to know of all prompts, by a pass over them."""
    statistics = Statistics()
    for table in table_files.read_tables(source, COLUMNS):
        for row in table.to_pylist():
            if row["error"] is None:
                statistics.add(candidates(completions_of(row), rules))
    return statistics.night()


class _Writer:
    """Writes one split in files of a bounded number of rows."""

    def __init__(self, target: str, split: str, schema: pa.Schema) -> None:
        self.target, self.split, self.schema = target, split, schema
        self.tables: list[pa.Table] = []
        self.num_rows = self.num_files = self.total = 0

    def add(self, completions: pa.Table, made: dict[int, dict[str, Any]]) -> None:
        """Add what was made of the rows of a table of completions, with the user's columns of each row."""
        if not made:
            return
        rows, numbers = list(made.values()), pa.array(made, pa.int64())
        columns = [
            as_type(completions[field.name.removeprefix(schemas.META)], field.type).take(numbers)
            if field.name.startswith(schemas.META)
            else pa.array([row[field.name] for row in rows], field.type)
            for field in self.schema
        ]
        self.tables.append(pa.table(columns, schema=self.schema))
        self.num_rows += len(rows)
        self.total += len(rows)
        if self.num_rows >= FILE_ROWS:
            self.close()

    def close(self) -> None:
        if self.tables:
            path = storage.join(self.target, f"{self.split}-{self.num_files:05d}.parquet")
            table_files.write_table(path, pa.concat_tables(self.tables))
            self.tables, self.num_rows, self.num_files = [], 0, self.num_files + 1


def _pair(row: dict[str, Any], chosen: dict[str, Any], rejected: dict[str, Any]) -> dict[str, Any]:
    """A row of TRL's columns."""
    return {
        **{name: row[name] for name in ("prompt", "prompt_id", "method")},
        "chosen": _response(row, chosen),
        "rejected": _response(row, rejected),
        "score_chosen": chosen["score"],
        "score_rejected": rejected["score"],
        "score_margin": chosen["score"] - rejected["score"],
        **{
            f"{side}_{name}": completion[column]
            for side, completion in (("chosen", chosen), ("rejected", rejected))
            for name, column in OF_EACH.items()
        },
    }


def _ranking(row: dict[str, Any], completions: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        **{name: row[name] for name in ("prompt", "prompt_id", "method")},
        "completions": [_response(row, c) for c in completions],
        "scores": [c["score"] for c in completions],
        **{f"completions_{name}": [c[column] for c in completions] for name, column in OF_EACH.items()},
    }


def _response(row: dict[str, Any], completion: dict[str, Any]) -> Any:
    """Text continues a prompt of text; one turn of the assistant answers a prompt of messages."""
    text = completion["text"]
    return text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]


if __name__ == "__main__":
    from pipelines.runtime.launch import main

    main(run)
