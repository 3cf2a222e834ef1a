"""The summary of a run as far as it has come, from its manifest and its tables: report/summary.md and summary.json."""

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from pipelines.completions import COLUMNS, completions_of
from pipelines.runtime.run_directory import RunDirectory
from rgtg import storage, table_files
from rgtg.evaluation.stats import Mean, mean
from rgtg.methods import Pool, reward_name
from rgtg.node_copy import cache_directory
from rgtg.preferences.selection import pool_of
from rgtg.report import warnings
from rgtg.report.summary import Comparison, Summary, as_markdown
from rgtg.sandbox.world import true_reward

BASELINE = "baseline"  # the stage of a night that completes some prompts unguided, to compare with

WARNINGS: dict[str, Callable[[dict[str, Any]], str | None]] = {
    "pairs": warnings.of_pairs,
    "train_reward": warnings.of_training,
    "generate": warnings.of_completions,
    "preferences": warnings.of_preferences,
}


def write(directory: RunDirectory) -> Summary:
    summary = _summary(directory)
    storage.write_json(directory.path("report", "summary.json"), summary.figures())
    storage.write_bytes(directory.path("report", "summary.md"), as_markdown(summary).encode())
    return summary


def accuracies(directory: RunDirectory) -> dict[str, dict[str, Any]]:
    """The held-out accuracy of each reward model of the run, by its name; the run's own comes first."""
    stages = [stage for stage in directory.stages if stage.startswith("train_reward") and directory.is_done(stage)]
    return {name_of(directory, stage): directory.counts(stage)["accuracy"] for stage in sorted(stages)}


def name_of(directory: RunDirectory, stage: str) -> str:
    """What the reward model of a stage is called."""
    inputs = directory.inputs_of(stage)
    return reward_name(inputs["train_reward.objective"], inputs["train_reward.head"])


def warnings_of(directory: RunDirectory, preferences: dict[str, Any] | None = None) -> list[str]:
    """What whoever uses the run's pairs must know, by its stages' counts; `preferences` are those of a stage that is
    not yet finished.
    """
    counts = {stage: directory.counts(stage) for stage in WARNINGS if directory.is_done(stage)}
    if preferences is not None:
        counts["preferences"] = preferences
    if directory.inputs_of("preferences").get("preferences.truncated") == "keep":
        counts.pop("generate", None)  # of texts that are cut off, which are wanted
    return [warning for stage, of in counts.items() if (warning := WARNINGS[stage](of))]


def _summary(directory: RunDirectory) -> Summary:
    done = {stage: directory.counts(stage) for stage in directory.stages if directory.is_done(stage)}
    generated = "generate" in done
    in_sandbox = generated and _in_sandbox(directory)
    return Summary(
        run=directory.uri,
        method=directory.config_of("generate").generate.method if generated else "",
        pairs=done.get("pairs"),
        accuracy=accuracies(directory),
        prompts=done.get("prompts"),
        guided=done.get("generate"),
        scores=_comparisons(directory, in_sandbox) if generated else {},
        preferences=done.get("preferences"),
        gates=done.get("gates"),
        seconds=directory.seconds(),
        warnings=warnings_of(directory),
        right=_right(directory.path("preferences")) if in_sandbox and "preferences" in done else None,
    )


def _in_sandbox(directory: RunDirectory) -> bool:
    """Whether the completions are of the sandbox's language model, so that their true reward is known."""
    language = directory.config_of("generate").models.language
    return Path(language).is_relative_to(cache_directory() / "sandbox")


def _comparisons(directory: RunDirectory, in_sandbox: bool) -> dict[str, Comparison]:
    """By what scores: the mean over prompts, the baseline's, and the gain over it, paired by prompt."""
    baseline = None  # in rows of its own; otherwise it stands beside the others
    if not directory.config_of("generate").generate.unguided_samples:
        rows = _rows(directory.path("completions_unguided")) if directory.is_done(BASELINE) else ()
        baseline = {row["prompt_id"]: _scores(row, "own", in_sandbox) for row in rows}
    # Numbers of eight bytes each: there may be millions of prompts.
    scores: dict[str, tuple[array[float], ...]] = defaultdict(lambda: (array("d"), array("d"), array("d")))
    for row in _rows(directory.path("completions")):
        own = _scores(row, "own", in_sandbox)
        other = _scores(row, "unguided", in_sandbox) if baseline is None else baseline.get(row["prompt_id"], {})
        for name, value in own.items():
            scores[name][0].append(value)
            if name in other:
                scores[name][1].append(other[name])
                scores[name][2].append(value - other[name])
    return {name: Comparison(*map(mean, values)) for name, values in scores.items()}


def _rows(uri: str) -> Iterator[dict[str, Any]]:
    return (row for table in table_files.read_tables(uri, COLUMNS) for row in table.to_pylist())


def _scores(row: dict[str, Any], pool: Pool, in_sandbox: bool) -> dict[str, float]:
    """Mean score of one pool of a prompt's completions; in the sandbox the true reward too."""
    every = completions_of(row) if row["error"] is None else []
    completions = [c for c in every if pool_of(c, every[0]) == pool]
    found = {}
    if scored := [c["score"] for c in completions if c["score"] is not None]:
        found["score"] = fmean(scored)
    if in_sandbox and completions:
        found["true reward"] = fmean(true_reward(row["prompt"] + c["text"]) for c in completions)
    return found


def _right(uri: str) -> Mean | None:
    """How often the better side of the sandbox's pairs, or of any two of a ranking, truly is; a tie counts as half."""
    margins = [
        true_reward(row["prompt"] + better) - true_reward(row["prompt"] + worse)
        for table in table_files.read_tables(uri)
        for row in table.to_pylist()
        for better, worse in combinations(row.get("completions") or (row["chosen"], row["rejected"]), 2)
    ]
    return mean((margin > 0) + 0.5 * (margin == 0) for margin in margins)
