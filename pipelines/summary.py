"""The summary of a run as far as it has come, from its manifest and its tables: report/summary.md and summary.json."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

from pipelines.completions import COLUMNS, completions_of
from pipelines.runtime.run_directory import RunDirectory
from rgtg import storage, table_files
from rgtg.evaluation.stats import Mean, gain, mean
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
    return [warning for stage, of in counts.items() if (warning := WARNINGS[stage](of))]


def _summary(directory: RunDirectory) -> Summary:
    done = {stage: directory.counts(stage) for stage in directory.stages if directory.is_done(stage)}
    scores, in_sandbox = {}, False
    if "generate" in done:
        in_sandbox = _in_sandbox(directory)
        scores = _scores(directory.path("completions"), "own", in_sandbox)
    if not scores:
        others = {}
    elif directory.config_of("generate").generate.unguided_samples:
        others = _scores(directory.path("completions"), "unguided", in_sandbox)
    else:
        others = _scores(directory.path("completions_unguided"), "own", in_sandbox) if BASELINE in done else {}
    selected = "preferences" in done
    return Summary(
        run=directory.uri,
        method=directory.config_of("generate").generate.method if scores else "",
        pairs=done.get("pairs"),
        accuracy=accuracies(directory),
        prompts=done.get("prompts"),
        guided=done.get("generate"),
        scores={
            name: Comparison(mean(values.values()), *_against(values, others.get(name)))
            for name, values in scores.items()
        },
        preferences=done.get("preferences"),
        seconds=directory.seconds(),
        warnings=warnings_of(directory),
        right=_right(directory.path("preferences")) if selected and in_sandbox else None,
    )


def _in_sandbox(directory: RunDirectory) -> bool:
    """Whether the completions are of the sandbox's language model, so that their true reward is known."""
    language = directory.config_of("generate").models.language
    return Path(language).is_relative_to(cache_directory() / "sandbox")


def _against(scores: dict[str, float], baseline: dict[str, float] | None) -> tuple[Mean | None, Mean | None]:
    return (mean(baseline.values()), gain(scores, baseline)) if baseline else (None, None)


def _scores(uri: str, pool: Pool, in_sandbox: bool) -> dict[str, dict[str, float]]:
    """Mean score of one pool of each prompt's completions, by prompt_id; in the sandbox the true reward too."""
    scores: dict[str, float] = {}
    true_rewards: dict[str, float] = {}
    for table in table_files.read_tables(uri, COLUMNS):
        for row in table.to_pylist():
            every = completions_of(row) if row["error"] is None else []
            completions = [c for c in every if pool_of(c, every[0]) == pool]
            if scored := [c["score"] for c in completions if c["score"] is not None]:
                scores[row["prompt_id"]] = sum(scored) / len(scored)
            if in_sandbox and completions:
                true = [true_reward(row["prompt"] + c["text"]) for c in completions]
                true_rewards[row["prompt_id"]] = sum(true) / len(true)
    return {"score": scores} | ({"true reward": true_rewards} if in_sandbox else {})


def _right(uri: str) -> Mean | None:
    """How often the better side of the sandbox's pairs, or of any two of a ranking, truly is; a tie counts as half."""
    margins = [
        true_reward(row["prompt"] + better) - true_reward(row["prompt"] + worse)
        for table in table_files.read_tables(uri)
        for row in table.to_pylist()
        for better, worse in combinations(row.get("completions") or (row["chosen"], row["rejected"]), 2)
    ]
    return mean((margin > 0) + 0.5 * (margin == 0) for margin in margins)
