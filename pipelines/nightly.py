"""All stages of one run: prompts, pairs, reward model, completions, preferences, summary.

A restarted job resumes: finished stages are skipped, and committed rows stay.
"""

import time

from rich.console import Console

from pipelines import gates, generate, input_checks, judge, preferences, prompts, report, train_reward
from pipelines import summary as summary_of
from pipelines.runtime.job_context import JobContext
from pipelines.runtime.model_checks import check_models, reward_path
from pipelines.runtime.run_directory import SUCCESS, RunDirectory
from rgtg import storage
from rgtg.config import Config
from rgtg.errors import UserError
from rgtg.methods import METHODS, STRATEGIES
from rgtg.report.summary import as_table


def run(config: Config) -> RunDirectory:
    """Run every unfinished stage, and print the summary."""
    begun = time.monotonic()
    _check_pairs_are_possible(config.with_strategy())
    input_checks.check(config, method=config.generate.method, pairs=True, prompts=True)
    job = JobContext.open(config, pairs=config.models.reward is None, prompts=True)
    config, directory = job.config, job.directory
    complete = storage.exists(directory.path(SUCCESS))
    prompts.run_stage(job)
    prompts.check(job)
    check_models(job, config.models.reward or config.train_reward.init)
    if config.models.reward is None:
        train_reward.run_stage(job)
        if config.nightly.compare_objectives:
            train_reward.reward_of(job.with_sections(train_reward=judge.own_judge(config.train_reward)))
    generate.run_stage(job)
    if config.nightly.baseline_prompts and not config.generate.unguided_samples:
        _baseline(job)
    judge.run_stage(job)
    preferences.run_stage(job)
    gates.run_stage(job)
    summary = summary_of.write(directory)
    report.write(directory)
    Console().print(as_table(summary))
    gates.check(job)
    complete = complete and storage.exists(directory.path(SUCCESS))  # no stage has removed it
    directory.succeed()
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


def _baseline(job: JobContext) -> None:
    """Complete some prompts unguided and score them by the same reward model, as the baseline."""
    config, directory = job.config, job.directory
    inputs = {
        "completions": directory.fingerprint_of(generate.STAGE),
        "nightly.baseline_prompts": config.nightly.baseline_prompts,
    }
    if directory.begin(summary_of.BASELINE, inputs, rerunnable=True) == "done":
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
    directory.finish(summary_of.BASELINE, counts, time.monotonic() - begun)


if __name__ == "__main__":
    from pipelines.runtime.launch import main

    main(run)
