"""Guided completions of the run's prompts, by Ray Data: read, decode on an actor pool, write, resume by prompt.

A block of prompts is the unit of work, of commit and of retry. A job started again goes on where the last one ended:
Ray's row checkpoint knows which prompt_ids are in committed files.
"""

import math
import time
from typing import Any

import pyarrow.parquet as pq
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext, SaveMode
from ray.data.checkpoint import CheckpointConfig

from pipelines import prompts, ray_session
from pipelines.generator import Generator
from pipelines.inputs import check_models, on_gpu, resolved, reward_place
from pipelines.progress import Progress
from pipelines.run_directory import RunDirectory, model_digest
from rgtg import storage
from rgtg.config import Config, Generate

STAGE = "generate"


def run(config: Config) -> RunDirectory:
    """The stage: prompts/ to completions/."""
    config = resolved(config, prompts=True)
    directory = prompts.run(config)
    reward = reward_place(config, directory)
    check_models(config, reward, directory)
    inputs = {
        "prompts": directory.fingerprint_of(prompts.STAGE),
        "models.language": model_digest(config.models.language),
        "models.reward": reward and model_digest(reward),
        "models.dtype": config.models.dtype,
        "run.seed": config.run.seed,
        **{
            f"generate.{name}": getattr(config.generate, name)
            for name in ("method", "beta", "k", "samples", "max_new_tokens")
        },
    }
    state = directory.begin(STAGE, inputs)
    if state == "done":
        return directory
    if state == "resume":
        print("generate: goes on from the rows that are committed", flush=True)
    begun = time.monotonic()
    counts = complete(config, reward, directory, directory.path("completions"), directory.path("_checkpoint"))
    expected = directory.counts(prompts.STAGE)["rows"]
    if counts["rows"] != expected:
        raise RuntimeError(f"completions/ has {counts['rows']} rows of {expected} prompts: this is a bug in rgtg")
    directory.finish(STAGE, counts, time.monotonic() - begun)
    return directory


def complete(
    config: Config,
    reward: str | None,
    directory: RunDirectory,
    target: str,
    checkpoint: str | None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Complete the (first `limit`) prompts of a run into `target`; the counts of what is there then."""
    settings = config.generate
    source, num_rows = directory.path("prompts"), directory.counts(prompts.STAGE)["rows"]
    num_rows = min(num_rows, limit or num_rows)
    num_gpus = 1 if on_gpu(config.models) else 0
    ray_session.start(config)
    storage.make_directory(target)
    filesystem, path = storage.resolve(target)
    source_filesystem, source_path = storage.resolve(source)
    context = DataContext.get_current().copy()
    if checkpoint:
        checkpoint_filesystem, checkpoint_path = storage.resolve(checkpoint)
        context.checkpoint_config = CheckpointConfig(
            id_column="prompt_id",
            checkpoint_path=checkpoint_path,
            override_filesystem=checkpoint_filesystem,
            delete_checkpoint_on_success=False,
        )
    progress = Progress(f"generate ({settings.method})", num_rows - _committed(target))
    with ray_session.explained("generation"), DataContext.current(context), progress:
        dataset = ray.data.read_parquet(source_path, filesystem=source_filesystem)
        if limit:
            dataset = dataset.limit(limit)
        # Ray packs small files into one block by bytes, and prompts are small: rows decide the blocks here.
        dataset = dataset.repartition(target_num_rows_per_block=settings.block_rows).map_batches(
            Generator,
            fn_constructor_kwargs={
                "models": config.models,
                "reward": reward,
                "settings": settings,
                "seed": config.run.seed,
                "board": progress.board,
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
    sums = progress.totals
    decoded = {"decode_seconds": round(sums.get("seconds", 0.0), 2), "decoded_tokens": int(sums.get("tokens", 0))}
    return count(target) | decoded


def count(target: str) -> dict[str, Any]:
    """Rows, errors, completions, tokens and rewards of a table of completions."""
    filesystem, _ = storage.resolve(target)
    totals: dict[str, Any] = {"rows": 0, "errors": 0, "completions": 0, "tokens": 0, "stopped": 0}
    rewards: list[float] = []
    columns = ["error", *(f"completions.list.element.{name}" for name in ("num_tokens", "reward", "finish_reason"))]
    for file in storage.list_files(target, (".parquet",)):
        table = pq.ParquetFile(file.path, filesystem=filesystem).read(columns=columns)
        flat = table["completions"].combine_chunks().flatten()
        totals["rows"] += table.num_rows
        totals["errors"] += table.num_rows - table["error"].null_count
        totals["completions"] += len(flat)
        totals["tokens"] += sum(flat.field("num_tokens").to_pylist())
        totals["stopped"] += sum(reason == "stop" for reason in flat.field("finish_reason").to_pylist())
        rewards.extend(reward for reward in flat.field("reward").to_pylist() if reward is not None)
    if rewards:
        values = torch.tensor(rewards, dtype=torch.float64)
        totals["mean_reward"] = round(float(values.mean()), 4)
        totals["reward_stderr"] = round(float(values.std(correction=1) / math.sqrt(len(rewards))), 4)
    return totals


def _calls_in_flight(settings: Generate) -> int:
    """Calls that keep the slots of an actor full while one of them is at its last completions."""
    return min(16, 2 + math.ceil(settings.slots / (settings.block_rows * settings.samples)))


def _committed(target: str) -> int:
    filesystem, _ = storage.resolve(target)
    return sum(
        pq.read_metadata(file.path, filesystem=filesystem).num_rows
        for file in storage.list_files(target, (".parquet",))
    )


if __name__ == "__main__":
    from pipelines.cli import main

    main(run)
