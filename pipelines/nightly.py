"""All stages of one run, in order: pairs, reward model, prompts, completions, preferences, summary.

Started again it goes on where it ended: a stage that is done is not done again, and rows that are written stay.
"""

import math
import time
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console

from pipelines import generate, pairs, preferences, prompts, train_reward
from pipelines.inputs import resolved, reward_place
from pipelines.run_directory import RunDirectory
from rgtg import storage
from rgtg.config import SANDBOX, Config
from rgtg.report.summary import Summary, as_markdown, as_table
from rgtg.sandbox.world import true_reward

COMPARISON = "train_reward_comparison"
BASELINE = "baseline"


def run(config: Config) -> RunDirectory:
    """Run every stage that is not done, and print the summary."""
    begun = time.monotonic()
    in_sandbox = config.models.language == SANDBOX
    config = resolved(config, pairs=config.models.reward is None, prompts=True)
    # Everything that can be known to be wrong with the input is said now, and not after the training.
    directory = prompts.run(config)
    if config.models.reward is None:
        train_reward.run(config)
        if config.nightly.compare_objectives:
            _compare_objectives(config)
    generate.run(config)
    if config.nightly.baseline_prompts:
        _baseline(config)
    directory = preferences.run(config)
    summary = _summary(config, directory, in_sandbox)
    storage.write_json(directory.path("report", "summary.json"), summary.figures())
    storage.write_bytes(directory.path("report", "summary.md"), as_markdown(summary).encode())
    directory.succeed()
    Console().print(as_table(summary))
    print(f"done in {time.monotonic() - begun:.0f} s: {directory.place}", flush=True)
    return directory


def _compare_objectives(config: Config) -> None:
    """Train on the other objective too, for the comparison by prefix length; nothing is generated with it."""
    other = "full" if config.train_reward.objective == "partial" else "partial"
    changed = config.model_copy(update={"train_reward": config.train_reward.model_copy(update={"objective": other})})
    directory = RunDirectory(config)
    train_reward.fit(changed, directory, COMPARISON, directory.path(f"reward_model_{other}"))


def _baseline(config: Config) -> None:
    """Complete some of the prompts unguided, and score them by the same reward model, to compare with."""
    directory = RunDirectory(config)
    inputs = {
        "completions": directory.fingerprint_of(generate.STAGE),
        "nightly.baseline_prompts": config.nightly.baseline_prompts,
    }
    if directory.begin(BASELINE, inputs) == "done":
        return
    begun = time.monotonic()
    settings = config.generate.model_copy(update={"method": "unguided", "beta": None})
    target = directory.path("completions_unguided")
    storage.remove(target)  # small, and without a checkpoint: it is done as a whole
    counts = generate.complete(
        config.model_copy(update={"generate": settings}),
        reward_place(config, directory),
        directory,
        target,
        checkpoint=None,
        limit=config.nightly.baseline_prompts,
    )
    directory.finish(BASELINE, counts, time.monotonic() - begun)


def _summary(config: Config, directory: RunDirectory, in_sandbox: bool) -> Summary:
    has = directory.is_done
    guided, unguided = directory.path("completions"), directory.path("completions_unguided")
    baseline = has(BASELINE)
    return Summary(
        run=directory.place,
        method=config.generate.method,
        pairs=directory.counts(pairs.STAGE) if has(pairs.STAGE) else None,
        accuracy={
            objective: directory.counts(stage)["accuracy"]
            for stage, objective in (
                (train_reward.STAGE, config.train_reward.objective),
                (COMPARISON, "full" if config.train_reward.objective == "partial" else "partial"),
            )
            if has(stage)
        },
        prompts=directory.counts(prompts.STAGE),
        guided=directory.counts(generate.STAGE),
        unguided=directory.counts(BASELINE) if baseline else None,
        true_guided=_true_reward(guided) if in_sandbox else None,
        true_unguided=_true_reward(unguided) if in_sandbox and baseline else None,
        preferences=directory.counts(preferences.STAGE),
        seconds={stage: entry.get("seconds", 0.0) for stage, entry in directory.manifest["stages"].items()},
    )


def _true_reward(place: str) -> tuple[float, float]:
    """Mean and standard error of the sandbox's true reward over prompts: completions of one are not independent."""
    filesystem, _ = storage.resolve(place)
    means = []
    for file in storage.list_files(place, (".parquet",)):
        table = pq.ParquetFile(file.path, filesystem=filesystem).read(
            columns=["prompt", "completions.list.element.text"]
        )
        for row in table.to_pylist():
            values: list[Any] = [true_reward(row["prompt"] + c["text"]) for c in row["completions"] or []]
            if values:
                means.append(sum(values) / len(values))
    mean = sum(means) / len(means)
    variance = sum((value - mean) ** 2 for value in means) / max(1, len(means) - 1)
    return mean, math.sqrt(variance / len(means))


if __name__ == "__main__":
    from pipelines.cli import main

    main(run)
