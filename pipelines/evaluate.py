"""Compare methods on the same prompts: rewards by the guiding model and by judges, KL, diversity, calls and time.

Each of `evaluate.methods` completes the first prompts of the run. Its reward model is models.reward if set, else one
trained on the objective of the method's paper. Tables and pictures are written to <run>/evaluate/.
"""

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import ray

from pipelines import generate, input_checks, prompts, summary, train_reward
from pipelines.runtime import ray_session
from pipelines.runtime.fingerprints import check_unchanged
from pipelines.runtime.job_context import JobContext
from pipelines.runtime.model_checks import check_models
from pipelines.runtime.resolved_config import on_gpu
from pipelines.runtime.run_directory import RunDirectory
from rgtg import storage, table_files
from rgtg.chat import Prompt
from rgtg.config import Config
from rgtg.config_section import SANDBOX
from rgtg.endpoint import Endpoint, Wins
from rgtg.errors import UserError
from rgtg.evaluation.judge import Judge, load_judge
from rgtg.evaluation.logprobs import logprobs as likelihood
from rgtg.evaluation.results import Result, Scores, measure
from rgtg.evaluation.variants import Variant, variants
from rgtg.models.hub import pinned
from rgtg.models.language import LanguageModel
from rgtg.models.text_reward import TextReward
from rgtg.report.evaluation import COSTS, as_markdown, as_table, picture
from rgtg.report.printing import print_table
from rgtg.sandbox.world import true_reward

STAGE = "evaluate"


def run(config: Config, judges: Mapping[str, Judge] | None = None) -> list[Result]:
    """Run the comparison and skip finished completions. `judges` are more judges, by name."""
    ways = variants(config.evaluate.methods, config.generate)
    in_sandbox = config.models.language == SANDBOX
    models, endpoint = _judging(config)
    input_checks.check(config, pairs=True, prompts=True)
    job = JobContext.open(config, pairs=config.models.reward is None, prompts=True)
    config, directory = job.config, job.directory
    prompts.run_stage(job)
    complete = storage.exists(directory.path("_SUCCESS"))  # a comparison leaves a complete run complete
    for way in ways:
        check_models(_job_of(way, job), config.models.reward or config.train_reward.init)
    done = {way: _complete(_job_of(way, job), way.name) for way in ways}
    scorers: dict[str, Judge] = {**({"true reward": _true_rewards} if in_sandbox else {}), **(judges or {})}
    scorers |= {f"judge {i}" if i > 1 else "judge": _by_model(job, model) for i, model in enumerate(models, 1)}
    rows = {way: _rows(target) for way, (target, _) in done.items()}
    judged: dict[Variant, dict[str, Scores]] = {way: {} for way in ways}
    for name, judge in scorers.items():  # on all ways at once, since a judge may load a model
        scores = iter(_judged(judge, [row for way in ways for row in rows[way]]))
        for way in ways:
            judged[way][name] = [next(scores) for _ in rows[way]]
    verdicts = unreadable = 0
    if endpoint:
        for way in ways:
            judged[way][f"wins against {ways[0].name}"], won = _wins(endpoint, rows[way], rows[ways[0]])
            verdicts, unreadable = verdicts + won.asked, unreadable + won.unreadable
    logprobs = {way: _judged(_by_language(job), rows[way], "token_ids") for way in ways if way.language}
    results = [measure(way, rows[way], judged[way], done[way][1], logprobs.get(way)) for way in ways]
    notes = [f"{unreadable:,} of the endpoint's {verdicts:,} verdicts could not be parsed; each counts as .5."]
    _report(config, directory, results, notes if verdicts else [])
    if complete:
        directory.succeed()
    return results


def _judging(config: Config) -> tuple[list[str], Endpoint | None]:
    """The judges of the config: models, and an endpoint. Raises UserError for anything else."""
    settings = config.evaluate
    urls = [judge for judge in settings.judges if re.match("https?://", judge)]
    models = [pinned(storage.absolute(judge), "evaluate.judges") for judge in settings.judges if judge not in urls]
    for model in models:
        TextReward.check(model, "evaluate.judges", config.models.trust_remote_code)
    if len(urls) > 1 or (urls and not settings.judge_model):
        raise UserError("evaluate.judges takes one endpoint, and evaluate.judge_model must name its model")
    return models, Endpoint(urls[0], settings.judge_model or "", settings.judge_key) if urls else None


def _job_of(way: Variant, job: JobContext) -> JobContext:
    """The job with the settings of one variant."""
    config = job.config
    init = config.train_reward.init or config.models.language
    train = config.train_reward.model_copy(update={"objective": way.objective, "head": way.head, "init": init})
    changes: dict[str, Any] = {"generate": way.settings, "train_reward": train}
    if way.language:
        language = pinned(storage.absolute(way.language), "language in evaluate.methods")
        changes["models"] = config.models.model_copy(update={"language": language})
    return job.with_sections(**changes)


def _complete(job: JobContext, name: str) -> tuple[str, float]:
    """Complete the prompts by the variant `name`, whose settings `job` has: the path, and the seconds of decoding."""
    config, directory = job.config, job.directory
    reward = config.models.reward or train_reward.reward_of(job)
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]  # since the readable part may not be unique
    slug = f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)[:80]}-{digest}"
    stage, target = f"{STAGE} {name}", directory.path(STAGE, slug)
    inputs = generate.inputs_of(job, reward) | {"evaluate.num_prompts": config.evaluate.num_prompts}
    if directory.begin(stage, inputs, rerunnable=True) != "done":
        begun = time.monotonic()
        storage.remove(target)  # never resumed, since its time is measured
        limit = config.evaluate.num_prompts
        counts = generate.complete(job, reward, target, checkpoint=None, limit=limit)
        directory.finish(stage, counts, time.monotonic() - begun)
    return target, directory.counts(stage)["decode_seconds"]


def _rows(uri: str) -> list[dict[str, Any]]:
    """Rows in the order of prompt_id, which is the same for all variants."""
    columns = ["prompt_id", "prompt", "completions", "error"]  # Python cannot represent all values of others
    rows = [row for table in table_files.read_tables(uri, columns) for row in table.to_pylist()]
    return sorted(rows, key=lambda row: row["prompt_id"])


def _judged(judge: Callable[..., list[float]], rows: Sequence[Mapping[str, Any]], column: str = "text") -> Scores:
    """The scores that a judge gives to the completions of `rows`."""
    given = [(row["prompt"], c[column]) for row in rows for c in row["completions"] or []]
    scores = iter(judge([prompt for prompt, _ in given], [completion for _, completion in given]))
    return [[next(scores) for _ in row["completions"] or []] for row in rows]


def _wins(
    endpoint: Endpoint, rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]
) -> tuple[Scores, Wins]:
    """Wins of the first completion of each prompt over that of `others`; the endpoint judges both orders."""
    both = [
        (row["prompt"], row["completions"][0]["text"], other["completions"][0]["text"])
        if row["completions"] and other["completions"]
        else None
        for row, other in zip(rows, others, strict=True)
    ]
    asked = [texts for texts in both if texts]
    won = endpoint.wins(*(list(column) for column in zip(*asked, strict=True))) if asked else Wins([], 0, 0)
    scores = iter(won.scores)
    return [[next(scores)] if texts else [] for texts in both], won


def _true_rewards(given: list[Prompt], texts: list[str]) -> list[float]:
    return [true_reward(str(prompt) + text) for prompt, text in zip(given, texts, strict=True)]


def _by_model(job: JobContext, uri: str) -> Judge:
    """A judge that is a reward model."""
    models, day = job.config.models, job.directory.date  # only these are sent to the worker
    digests = {uri: job.digests.model(uri)}

    def score(given: list[Prompt], texts: list[str]) -> list[float]:
        options: dict[str, Any] = models.model_dump(include={"device", "dtype", "trust_remote_code"})
        judge = load_judge(uri, what="evaluate.judges", day=day, **options)
        check_unchanged(digests)
        return judge(given, texts)

    return _on_a_worker(score, job.config)


def _by_language(job: JobContext) -> Callable[[list[Prompt], list[list[int]]], list[float]]:
    """The log-probabilities of completions under the run's language model."""
    models, day = job.config.models, job.directory.date
    digests = {models.language: job.digests.model(models.language)}

    def score(given: list[Prompt], ids: list[list[int]]) -> list[float]:
        options: dict[str, Any] = models.model_dump(include={"device", "dtype", "trust_remote_code"})
        model = LanguageModel.load(models.language, **options)
        check_unchanged(digests)
        return likelihood(model, given, ids, day)

    return _on_a_worker(score, job.config)


def _on_a_worker(score: Callable[..., list[float]], config: Config) -> Callable[..., list[float]]:
    """`score` as a Ray task, on a machine that has the device."""

    def judge(*given: Any) -> list[float]:
        ray_session.start(config)
        remote = ray.remote(num_gpus=1 if on_gpu(config.models) else 0, num_cpus=1)(score)
        with ray_session.translate_ray_errors("judging"):
            scores: list[float] = ray.get(remote.remote(*given))
        return scores

    return judge


def _report(config: Config, directory: RunDirectory, results: Sequence[Result], more: Sequence[str]) -> None:
    folder = directory.path(STAGE)
    samples = config.generate.samples
    notes = [
        f"{config.evaluate.num_prompts:,} prompts x {samples} completions; means over prompts ± standard error. "
        "Scores of different reward models are on different scales. KL is estimated from the log-probabilities of "
        "the sampled tokens. Calls are per completion: tokens that the language model decoded, and scored prefixes.",
        *more,
    ]
    storage.write_json(
        f"{folder}/results.json", [asdict(r) | {"tokens_per_second": r.tokens_per_second} for r in results]
    )
    accuracies = summary.accuracies(directory)
    storage.write_bytes(f"{folder}/results.md", as_markdown(results, accuracies, notes).encode())
    for cost in COSTS:
        storage.write_bytes(f"{folder}/by_{cost}.png", picture(results, cost))
    print_table(as_table(results))
    for note in more:
        print(note, flush=True)
    print(f"tables and pictures are in {folder}", flush=True)


if __name__ == "__main__":
    from pipelines.runtime.launch import main

    main(run)
