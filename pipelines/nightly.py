"""All stages of one run: prompts, pairs, reward model, completions, preferences, summary.

A restarted job resumes: finished stages are skipped, and committed rows stay.
"""

import time
from itertools import combinations

from rich.console import Console

from pipelines import generate, pairs, preferences, prompts, train_reward
from pipelines.runtime.job_context import JobContext
from pipelines.runtime.model_checks import check_models, reward_path
from pipelines.runtime.run_directory import SUCCESS, RunDirectory
from rgtg import storage, table_files
from rgtg.config import Config
from rgtg.config_section import SANDBOX
from rgtg.errors import UserError
from rgtg.evaluation.stats import Mean, gain, mean
from rgtg.methods import METHODS, STRATEGIES, Pool
from rgtg.preferences.selection import pool_of
from rgtg.report.summary import Comparison, Summary, as_markdown, as_table
from rgtg.sandbox.world import true_reward

BASELINE = "baseline"


def run(config: Config) -> RunDirectory:
    """Run every unfinished stage, and print the summary."""
    begun = time.monotonic()
    in_sandbox = config.models.language == SANDBOX
    _check_pairs_are_possible(config.with_strategy())
    job = JobContext.open(config, pairs=config.models.reward is None, prompts=True)
    config, directory = job.config, job.directory
    complete = storage.exists(directory.path(SUCCESS))
    prompts.run_stage(job)
    check_models(job, config.models.reward or config.train_reward.init)
    if config.models.reward is None:
        train_reward.run_stage(job)
        if config.nightly.compare_objectives:
            _compare_objectives(job)
    generate.run_stage(job)
    if config.nightly.baseline_prompts and not config.generate.unguided_samples:
        _baseline(job)
    preferences.run_stage(job)
    summary = _summary(config, directory, in_sandbox)
    storage.write_json(directory.path("report", "summary.json"), summary.figures())
    storage.write_bytes(directory.path("report", "summary.md"), as_markdown(summary).encode())
    complete = complete and storage.exists(directory.path(SUCCESS))  # no stage has removed it
    directory.succeed()
    Console().print(as_table(summary))
    if complete:
        print(
            f"nothing to do: the run {directory.uri} is already complete; use --new-run, or another run.id, to start "
            "a new one",
            flush=True,
        )
        return directory
    print(f"done in {time.monotonic() - begun:.0f} s: {directory.uri}", flush=True)
    return directory


def _check_pairs_are_possible(config: Config) -> None:
    """Everything that can be known to be wrong is said now, and not after the training or the night."""
    settings, strategy = config.generate, config.preferences.select
    pools = STRATEGIES[strategy or "best-worst"]
    if pools.rejected == "own" and (settings.samples < 2 or METHODS[settings.method].greedy):
        raise UserError(
            f"a preference pair needs two different completions ({strategy}), and generate.samples is "
            f"{settings.samples} with the method {settings.method!r}; set it to 2 or more with a method that samples, "
            "pair with unguided completions (preferences.select=guided-unguided), or run train-reward and generate "
            "alone"
        )


def _compare_objectives(job: JobContext) -> None:
    """Train a second reward model on the other objective, only to compare accuracy by prefix length."""
    settings = job.config.train_reward
    other = "full" if settings.objective == "partial" else "partial"
    train_reward.reward_of(job.with_sections(train_reward=settings.model_copy(update={"objective": other})))


def _baseline(job: JobContext) -> None:
    """Complete some prompts unguided and score them by the same reward model, as the baseline."""
    config, directory = job.config, job.directory
    inputs = {
        "completions": directory.fingerprint_of(generate.STAGE),
        "nightly.baseline_prompts": config.nightly.baseline_prompts,
    }
    if directory.begin(BASELINE, inputs, rerunnable=True) == "done":
        return
    begun = time.monotonic()
    settings = config.generate.by("unguided", k=config.generate.k)
    target = directory.path("completions_unguided")
    storage.remove(target)  # it has no checkpoint, and is small enough to be repeated
    counts = generate.complete(
        job.with_sections(generate=settings),
        reward_path(job),
        target,
        checkpoint=None,
        limit=config.nightly.baseline_prompts,
    )
    directory.finish(BASELINE, counts, time.monotonic() - begun)


def _summary(config: Config, directory: RunDirectory, in_sandbox: bool) -> Summary:
    guided = _scores(directory.path("completions"), "own", in_sandbox)
    if config.generate.unguided_samples:
        unguided = _scores(directory.path("completions"), "unguided", in_sandbox)
    else:
        done = directory.is_done(BASELINE)
        unguided = _scores(directory.path("completions_unguided"), "own", in_sandbox) if done else {}
    return Summary(
        run=directory.uri,
        method=config.generate.method,
        pairs=directory.counts(pairs.STAGE) if directory.is_done(pairs.STAGE) else None,
        accuracy=train_reward.accuracies(directory),
        prompts=directory.counts(prompts.STAGE),
        guided=directory.counts(generate.STAGE),
        scores={
            name: Comparison(mean(scores.values()), *_against(scores, unguided.get(name)))
            for name, scores in guided.items()
        },
        preferences=directory.counts(preferences.STAGE),
        seconds=directory.seconds(),
        warning=train_reward.warning(directory),
        right=_right(directory.path("preferences")) if in_sandbox else None,
    )


def _against(scores: dict[str, float], baseline: dict[str, float] | None) -> tuple[Mean | None, Mean | None]:
    return (mean(baseline.values()), gain(scores, baseline)) if baseline else (None, None)


def _scores(uri: str, pool: Pool, in_sandbox: bool) -> dict[str, dict[str, float]]:
    """Mean score of one pool of each prompt's completions, by prompt_id; in the sandbox the true reward too."""
    scores: dict[str, float] = {}
    true_rewards: dict[str, float] = {}
    for table in table_files.read_tables(uri, preferences.COLUMNS):
        for row in table.to_pylist():
            every = preferences.completions_of(row) if row["error"] is None else []
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


if __name__ == "__main__":
    from pipelines.runtime.launch import main

    main(run)
