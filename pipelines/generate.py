"""Guided completions of the run's prompts, on Ray Data: read, decode on an actor pool, write, resume by prompt.

A block of prompts is the unit of work, commit and retry. A restarted job resumes from the committed rows: Ray's row
checkpoint lists the prompt_ids in committed files.
"""

import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, DataContext, SaveMode
from ray.data.checkpoint import CheckpointConfig

from pipelines import input_checks, prompts, summary
from pipelines.generate_actor import Generator
from pipelines.row_errors import Reasons, check_errors
from pipelines.runtime import ray_session
from pipelines.runtime.fingerprints import Inputs, versions_that_round
from pipelines.runtime.job_context import JobContext
from pipelines.runtime.job_log import log
from pipelines.runtime.model_checks import check_models, reward_path
from pipelines.runtime.progress import Progress
from pipelines.runtime.resolved_config import on_gpu
from pipelines.runtime.run_directory import RunDirectory
from rgtg import config_section, storage, table_files
from rgtg.chat import control_token
from rgtg.config import Config, Generate
from rgtg.errors import TransientError
from rgtg.models.loading import load_tokenizer
from rgtg.report import warnings

STAGE = "generate"
ATTEMPTS = 3


def run(config: Config) -> RunDirectory:
    """The stages `prompts` and `generate`, as a command."""
    input_checks.check(config, method=config.generate.method, prompts=True)
    job = JobContext.open(config, prompts=True)
    prompts.run_stage(job)
    prompts.check(job)
    run_stage(job)
    summary.write(job.directory)
    return job.directory


def run_stage(job: JobContext) -> None:
    """Complete prompts/ into completions/."""
    config, directory = job.config, job.directory
    reward = reward_path(job)
    check_models(job, reward)
    inputs = inputs_of(job, reward)
    grew = config.generate.incremental and directory.changed(STAGE, inputs) == {"prompts"}
    target, checkpoint = directory.path("completions"), directory.path("_checkpoint")
    state = directory.begin(
        STAGE,
        inputs,
        rerunnable=grew,
        alike=versions_that_round(),
        has_work=storage.exists(checkpoint) and bool(_names(checkpoint)),
    )
    if state == "done":
        check_errors(config, directory.counts(STAGE), target)
        return
    if state == "resume" or grew:
        log.info("generate: resuming from committed rows")
    begun = time.monotonic()
    expected = directory.counts(prompts.STAGE)["rows"]
    for _ in range(ATTEMPTS):  # repeated only if workers of a killed job were still writing
        _reconcile(target, checkpoint)
        counts = complete(job, reward, target, checkpoint)
        if counts["rows"] == expected:
            break
    else:
        raise TransientError(
            f"{target!r} has {counts['rows']} rows for {expected} prompts; make sure that no other job writes there, "
            "and start the job again"
        )
    check_errors(config, counts, target)
    counts["with_control_tokens"] = _with_control_tokens(config, directory.path("prompts"))
    directory.finish(STAGE, counts, time.monotonic() - begun)
    if weak := warnings.of_completions(counts):
        log.warning(f"generate: WARNING: {weak}")


def _with_control_tokens(config: Config, uri: str) -> int:
    """How many prompts of text spell out control tokens: they are often rendered already, and stay as they are."""
    trust = config.models.trust_remote_code
    tokenizer = load_tokenizer(config.models.language, "models.language", trust_remote_code=trust)
    return sum(
        isinstance(prompt, str) and control_token(tokenizer, prompt) is not None
        for table in table_files.read_tables(uri, ["prompt"])
        for prompt in table["prompt"].to_pylist()
    )


def inputs_of(job: JobContext, reward: str | None) -> Inputs:
    """All inputs that the rows depend on."""
    config, digest = job.config, job.digests.model
    return {
        "prompts": job.directory.fingerprint_of(prompts.STAGE),
        "models.language": digest(config.models.language),
        "models.reward": reward and digest(reward),
        "models.dtype": config.models.dtype,
        "models.reward_reads": config.models.reward_reads,
        "models.ensemble": [digest(uri) for uri in config.models.ensemble],
        "models.combine": [config.models.combine, config.models.bound_width] if config.models.ensemble else None,
        "run.seed": config.run.seed,
        **{f"generate.{name}": value for name, value in config_section.inputs_of(config.generate).items()},
    }


def complete(
    job: JobContext,
    reward: str | None,
    target: str,
    checkpoint: str | None,
    limit: int | None = None,
    actor: type[Generator] = Generator,
) -> dict[str, Any]:
    """Complete the (first `limit`) prompts of a run into `target`, and return the counts of all rows there.

    Raises UserError where a model has changed since the job began.
    """
    config, directory, settings = job.config, job.directory, job.config.generate
    source, found = directory.path("prompts"), directory.counts(prompts.STAGE)["rows"]
    num_rows = min(found, limit or found)
    num_gpus = settings.gpus_per_actor if on_gpu(config.models) else 0
    ray_session.start(config)
    storage.make_directory(target)
    paths = table_files.check_tables(source)
    if checkpoint and storage.exists(checkpoint):
        table_files.check_lists(checkpoint)
    filesystem, path = storage.resolve(target)
    context = _context(checkpoint)
    # The first prompts must not depend on which file is read first.
    context.execution_options.preserve_order = limit is not None
    progress = Progress(f"generate ({settings.method})", num_rows - (_committed(checkpoint) if checkpoint else 0))
    with ray_session.translate_ray_errors("generation"), DataContext.current(context), progress:
        dataset = ray.data.read_parquet(paths, filesystem=storage.resolve(source)[0], partitioning=None)
        if limit:
            dataset = dataset.limit(limit)
        # By rows, since Ray packs blocks by bytes and prompts are small.
        dataset = dataset.repartition(target_num_rows_per_block=settings.block_rows).map_batches(
            actor,
            fn_constructor_kwargs={
                "models": config.models,
                "reward": reward,
                "settings": settings,
                "seed": config.run.seed,
                "progress": progress.actor,
                "day": directory.date,
                "digests": {uri: job.digests.model(uri) for uri in _models(config, reward)},
            },
            batch_size=settings.block_rows,
            batch_format="pyarrow",
            num_gpus=num_gpus or None,
            num_cpus=None if num_gpus else settings.threads,
            compute=ActorPoolStrategy(
                min_size=settings.min_actors,
                max_size=settings.max_actors,
                max_concurrent_calls_per_actor=_calls_in_flight(settings),
                enable_true_multi_threading=True,
            ),
            udf_modifying_row_count=False,
        )
        dataset.write_parquet(path, filesystem=filesystem, mode=SaveMode.APPEND)
    seconds, tokens = (progress.totals.get(name, 0.0) for name in ("seconds", "tokens"))
    return count(target) | {"decode_seconds": round(seconds, 2), "decoded_tokens": int(tokens)}


def _models(config: Config, reward: str | None) -> list[str]:
    """All models that an actor loads."""
    return [config.models.language, *([reward] if reward else []), *config.models.ensemble]


def _context(checkpoint: str | None) -> DataContext:
    """Ray Data's context, with the row checkpoint that lists the finished prompts."""
    context = DataContext.get_current().copy()
    if checkpoint:
        filesystem, path = storage.resolve(checkpoint)
        context.checkpoint_config = CheckpointConfig(
            id_column="prompt_id",
            checkpoint_path=path,
            override_filesystem=filesystem,
            delete_checkpoint_on_success=False,
        )
    return context


def count(target: str) -> dict[str, Any]:
    """Counts of a table of completions: rows, errors by kind, completions and tokens."""
    totals: Counter[str] = Counter(rows=0, errors=0, completions=0, tokens=0, stopped=0)
    reasons = Reasons()
    columns = ["error", *(f"completions.list.element.{name}" for name in ("num_tokens", "finish_reason"))]
    for table in table_files.read_tables(target, columns):
        flat = table["completions"].combine_chunks().flatten()
        errors = table["error"].drop_null()
        reasons.add(errors.to_pylist())
        totals.update(
            rows=table.num_rows,
            errors=len(errors),
            completions=len(flat),
            tokens=pc.sum(flat.field("num_tokens")).as_py() or 0,
            stopped=pc.sum(pc.equal(flat.field("finish_reason"), "stop")).as_py() or 0,
        )
    return {**totals, "error_reasons": reasons.most_common()}


def _calls_in_flight(settings: Generate) -> int:
    """Concurrent calls of an actor that keep its slots full while one call ends."""
    return min(16, 2 + math.ceil(settings.slots / (settings.block_rows * settings.samples_in_all)))


def _reconcile(target: str, checkpoint: str) -> None:
    """Remove files of completions without a committed list of ids, and lists without a file.

    Ray writes a pending list, the file and the committed list, in this order, and cleans up after an interrupted job.
    But workers outlive a killed driver for a moment, in which they may still commit.
    """
    if not storage.exists(checkpoint):
        return
    lists = {name: name.removesuffix(".parquet") for name in _names(checkpoint)}
    files = {name: name.rpartition("-")[0] for name in _names(target)}  # one list may cover several
    for uri, writes, others in ((checkpoint, lists, set(files.values())), (target, files, set(lists.values()))):
        for name, write in writes.items():
            if write not in others:
                storage.remove(storage.join(uri, name))


def _names(uri: str) -> list[str]:
    return [Path(file.path).name for file in storage.list_files(uri, (".parquet",))]


def _committed(checkpoint: str) -> int:
    """The number of rows that earlier attempts have committed.

    Counted from the lists of ids: a file of completions whose list is pending may be torn, and will be removed.
    """
    if not storage.exists(checkpoint):
        return 0
    return sum(t.num_rows for t in table_files.read_tables(checkpoint, keep=lambda path: ".pending." not in path))


if __name__ == "__main__":
    from pipelines.runtime.launch import main

    main(run)
