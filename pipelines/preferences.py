"""Preference pairs or rankings of the run's completions, by one of the strategies of selection; cheap to run again."""

import time
from collections import Counter
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerFast

from pipelines import gates, generate, judge, report, summary
from pipelines.completions import COLUMNS, TOKEN_REWARDS
from pipelines.preference_files import SPLITS, ExportFiles, Files
from pipelines.runtime.job_context import JobContext
from pipelines.runtime.job_log import log
from pipelines.runtime.run_directory import SUCCESS, RunDirectory
from pipelines.selecting import Selection
from rgtg import config_section, schemas, storage, table_files
from rgtg.config import Config, Preferences
from rgtg.errors import UserError
from rgtg.methods import STRATEGIES
from rgtg.models.loading import load_tokenizer
from rgtg.passed_through import as_type, loadable
from rgtg.preferences.selection import fraction
from rgtg.preferences.steps import stepped
from rgtg.report import warnings

STAGE = "preferences"
# Columns of each completion of a pair or a ranking, and what they are in completions/.
OF_EACH = {
    **{name: name for name in ("index", "method", "logprob", "guided_logprob")},
    **{"tokens": "num_tokens", "finish": "finish_reason"},
}
OWN = [*schemas.COMPLETION_COLUMNS]


def run(config: Config) -> RunDirectory:
    """The stage alone, as a command."""
    job = JobContext.open(config, models=False)
    _check_done(job)
    complete = storage.exists(job.directory.path(SUCCESS))
    judge.run_stage(job)
    run_stage(job)
    gates.run_stage(job)
    summary.write(job.directory)
    report.write(job.directory)
    gates.check(job)
    if complete:  # a complete run stays so with other pairs
        job.directory.succeed()
    return job.directory


def run_stage(job: JobContext) -> None:
    """Select the pairs of completions/ into preferences/, which `datasets.load_dataset` reads."""
    directory, settings = job.directory, job.config.preferences
    assert settings.select  # the job has filled it in
    _check_done(job)
    _check_pools(job)
    inputs = {"completions": directory.fingerprint_of(generate.STAGE)} | {
        f"preferences.{name}": value for name, value in config_section.inputs_of(settings).items()
    }
    judged = judge.judge_of(job) is not None
    if judged:
        inputs["judge"] = directory.fingerprint_of(judge.STAGE)
    if directory.begin(STAGE, inputs, rerunnable=True) == "done":
        return
    begun = time.monotonic()
    source = directory.path("completions")
    opinions = judge.of_rows(directory) if judged else repeat(None)
    counts = _make(source, directory, settings, opinions)
    what = "rankings" if STRATEGIES[settings.select].key is None else "pairs"
    dropped = "".join(f"\n  {n} without a pair: {reason}" for reason, n in counts["dropped"].items())
    log.info(f"preferences: {counts['train']} {what} to train on, {counts['test']} to test on{dropped}")
    if not counts["train"] + counts["test"]:
        summary.write(directory)
        report.write(directory)
        reasons = "; ".join(f"{n:,} times: {reason}" for reason, n in counts["dropped"].items())
        raise UserError(f"none of the {sum(counts['dropped'].values()):,} prompts of {source!r} has a pair: {reasons}")
    for name, rows in counts["exports"].items():
        log.info(f"preferences: exports/{name} has {rows['train']} rows to train on, {rows['test']} to test on")
        if not rows["train"] + rows["test"]:
            raise UserError(
                f"preferences.export={name} needs the reward of every token, which no completion of {source!r} "
                f"has; leave {name} out"
            )
    directory.finish(STAGE, counts, time.monotonic() - begun)
    if weak := warnings.of_preferences(counts):
        log.warning(f"preferences: WARNING: {weak}")


def _make(
    source: str, directory: RunDirectory, settings: Preferences, opinions: Iterator[dict[str, Any] | None]
) -> dict[str, Any]:
    """Write the pairs or rankings of the completions at `source`, and their exports, and return the counts.

    `opinions` has the row of judged/ of each prompt, in the same order.
    """
    assert settings.select
    selection = Selection(source, settings)
    target = directory.path("preferences")
    storage.remove(target)
    storage.make_directory(target)
    ranked = STRATEGIES[settings.select].key is None
    dropped: Counter[str] = Counter()
    margins = 0.0  # the sum
    completions_schema = table_files.schema_of(source)
    passed_through = loadable(schemas.passed_through(completions_schema))
    schema_of = schemas.rankings_schema if ranked else schemas.preferences_schema
    prompt = completions_schema.field("prompt").type
    schema = schema_of(prompt, passed_through)
    files = {split: Files(storage.join(target, f"{split}-"), "parquet", schema) for split in SPLITS}
    exports = ExportFiles(directory.path("exports"), settings.export, prompt)
    tokenizer = _tokenizer(directory) if "stepwise" in settings.export else None
    columns = [*COLUMNS, *([TOKEN_REWARDS] if tokenizer else []), *(field.name for field in passed_through)]
    for table in table_files.read_tables(source, columns):
        made: dict[str, dict[int, dict[str, Any]]] = {split: {} for split in SPLITS}  # by the row of the prompt
        for number, (row, opinion) in enumerate(zip(table.select(OWN).to_pylist(), opinions, strict=False)):
            if row["error"] is not None:
                dropped["prompts with an error"] += 1
                continue
            selected = selection.of(row)
            if isinstance(selected, str):
                dropped[selected] += 1
                continue
            margins += selected[0]["score"] - selected[-1]["score"]
            # By prompt_id alone, so that a prompt is in the same split in every run.
            split = "test" if fraction(f"split/{row['prompt_id']}") < settings.test_fraction else "train"
            pair = _ranking(row, selected) if ranked else _pair(row, opinion, *selected)
            made[split][number] = pair | {"run_id": directory.config.run.id, "strategy": settings.select}
            if tokenizer:
                made[split][number] |= stepped(tokenizer, row["prompt"], selected, directory.date)
        for split, rows in made.items():
            if rows:
                files[split].add(_table(table, rows, schema))
                exports.add(split, list(rows.values()))
    for of_split in files.values():
        of_split.close()
    sizes = {split: of_split.total for split, of_split in files.items()}
    return {
        **sizes,
        "dropped": dict(dropped.most_common()),
        "mean_margin": round(margins / max(1, sum(sizes.values())), 4),
        "exports": exports.close(),
    }


def _tokenizer(directory: RunDirectory) -> PreTrainedTokenizerFast:
    """That of the language model. Raises UserError for one that cannot tell the tokens of a text apart."""
    models = directory.config_of(generate.STAGE).models
    tokenizer = load_tokenizer(models.language, "models.language", trust_remote_code=models.trust_remote_code)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"preferences.export=stepwise needs a tokenizer.json, and {models.language!r} has none; leave stepwise out"
        )
    return tokenizer


def _check_done(job: JobContext) -> None:
    if not job.directory.is_done(generate.STAGE):
        raise UserError(f"the run {job.directory.uri!r} has no finished completions; run generate first")


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


def _table(completions: pa.Table, made: dict[int, dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """What was made of rows of completions, by their numbers, with the user's columns of each."""
    rows, numbers = list(made.values()), pa.array(made, pa.int64())
    columns = [
        as_type(completions[field.name.removeprefix(schemas.META)], field.type).take(numbers)
        if field.name.startswith(schemas.META)
        else pa.array([row[field.name] for row in rows], field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _pair(
    row: dict[str, Any], opinion: dict[str, Any] | None, chosen: dict[str, Any], rejected: dict[str, Any]
) -> dict[str, Any]:
    """A row of TRL's columns; `opinion` is the prompt's row of judged/."""
    return {
        **{name: row[name] for name in ("prompt", "prompt_id", "method")},
        "chosen": _response(row, chosen),
        "rejected": _response(row, rejected),
        "score_chosen": chosen["score"],
        "score_rejected": rejected["score"],
        "score_margin": chosen["score"] - rejected["score"],
        **_second_opinion(opinion, chosen["index"], rejected["index"]),
        **{
            f"{side}_{name}": completion[column]
            for side, completion in (("chosen", chosen), ("rejected", rejected))
            for name, column in OF_EACH.items()
        },
    }


def _second_opinion(opinion: dict[str, Any] | None, chosen: int, rejected: int) -> dict[str, float | None]:
    if not opinion or not opinion["scores"]:
        return {"judge_score_chosen": None, "judge_score_rejected": None, "agreement": None}
    scores = opinion["scores"]
    return {
        "judge_score_chosen": scores[chosen],
        "judge_score_rejected": scores[rejected],
        "agreement": opinion["agreement"],
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
