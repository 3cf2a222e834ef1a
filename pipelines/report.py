"""The page of a run, from what is on disk: report/index.html and report.json, and pairs for people to judge.

`rgtg report run.root=... run.id=...` writes it for any run, finished or not.
"""

import json
import time
from typing import Any

from pipelines import report_figures as figures
from pipelines import report_pairs, summary
from pipelines.report_statistics import CompletionStatistics, Picked, completion_statistics, pair_statistics
from pipelines.runtime.job_log import log
from pipelines.runtime.run_directory import SUCCESS, RunDirectory, manifest_of
from rgtg import storage
from rgtg.config import Config
from rgtg.errors import TransientError, UserError
from rgtg.methods import STRATEGIES
from rgtg.models.loading import load_tokenizer
from rgtg.report.page import render
from rgtg.report.run_figures import Page, Pair
from rgtg.report.token_tint import Decode, full_tint

PAGE, FIGURES, REVIEW, ANSWERS = "index.html", "report.json", "review.jsonl", "review_answers.jsonl"

Review = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # pairs to judge, and their answers


def run(config: Config) -> None:
    """The command: nothing but report/ is written, so that it may run beside a job."""
    root = storage.absolute(config.run.root, must_exist=False)
    config = config.model_copy(update={"run": config.run.model_copy(update={"root": root})})
    if manifest_of(config.run.directory) is None:
        raise UserError(f"there is no run at {config.run.directory!r}; name one by run.root and run.id")
    directory = RunDirectory(config)
    write(directory)
    print(directory.path("report", PAGE))


def write(directory: RunDirectory) -> Page:
    """Render the run as far as it has come."""
    begun = time.monotonic()
    page, (asked, answers) = collect(directory)
    storage.write_bytes(directory.path("report", PAGE), render(page).encode())
    storage.write_json(directory.path("report", FIGURES), page.figures())
    for name, rows in ((REVIEW, asked), (ANSWERS, answers)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        storage.write_bytes(directory.path("report", name), lines.encode())
    log.info(f"report: {directory.path('report', PAGE)}, in {time.monotonic() - begun:.1f} s")
    return page


def collect(directory: RunDirectory) -> tuple[Page, Review]:
    """The page's figures and pairs, and the rows of the review."""
    done = {stage: directory.counts(stage) for stage in directory.stages if directory.is_done(stage)}
    config = figures.config_of(directory)
    seed = config.get("run", {}).get("seed", 0)
    has_pairs = _has(directory, "preferences", "preferences")
    of_pairs = pair_statistics(directory.path("preferences"), seed) if has_pairs else None
    picked = of_pairs.picked if of_pairs else {}
    of_completions = _completion_statistics(directory, picked)
    decode = _decode(directory) if picked and of_completions else None
    pairs, review = _with_texts(directory, picked, of_completions, decode, seed)
    written = _summary(directory)
    counts, generated = done.get("preferences", {}), done.get("generate", {})
    method = config.get("generate", {}).get("method") or Config().generate.method
    strategy = directory.inputs_of("preferences").get("preferences.select")
    page = Page(
        run_id=str(directory.manifest["run_id"]),
        created=directory.manifest["created"],
        method=method if generated else None,
        strategy=strategy if counts else None,
        complete="gates" in done or storage.exists(directory.path(SUCCESS)),
        ranked=strategy in STRATEGIES and STRATEGIES[strategy].key is None,
        train=counts.get("train"),
        test=counts.get("test"),
        prompts=done.get("prompts", generated).get("rows"),
        completions=generated.get("completions"),
        mean_margin=counts.get("mean_margin"),
        right=figures.mean_of(written.get("right")),
        gates=figures.gates_of(done["gates"]) if "gates" in done else None,
        warnings=[str(warning) for warning in written.get("warnings", [])],
        accuracy=figures.accuracy_of(directory, done),
        sides=figures.sides_of(method, of_pairs, of_completions, written),
        histograms=figures.histograms_of(of_pairs, of_completions),
        length=figures.length_of(of_pairs, of_completions),
        without=list(counts.get("dropped", {}).items()),
        pairs=pairs,
        full=full_tint(p.increment for pair in pairs for s in (pair.chosen, pair.rejected) for p in s.pieces),
        cost=figures.cost_of(directory, done),
        settings=figures.settings_of(config),
        digests=figures.digests_of(directory),
        versions=(directory.manifest.get("attempts") or [directory.manifest])[-1].get("versions", {}),
        missing=figures.missing_of(has_pairs, of_pairs, of_completions, pairs, has_tokenizer=decode is not None),
    )
    return page, review


def _summary(directory: RunDirectory) -> dict[str, Any]:
    """The run's summary, which knows the sandbox's true reward."""
    file = directory.path("report", "summary.json")
    return storage.read_json(file) if storage.exists(file) else {}


def _has(directory: RunDirectory, stage: str, table: str) -> bool:
    """Whether a stage is finished and its table is still there."""
    uri = directory.path(table)
    return directory.is_done(stage) and storage.exists(uri) and bool(storage.list_files(uri, (".parquet",)))


def _completion_statistics(directory: RunDirectory, picked: dict[str, list[Picked]]) -> CompletionStatistics | None:
    if not _has(directory, "generate", "completions"):
        return None
    apart = _has(directory, summary.BASELINE, "completions_unguided")
    baseline = directory.path("completions_unguided") if apart else None
    prompt_ids = {pair.prompt_id for pairs in picked.values() for pair in pairs}
    return completion_statistics(directory.path("completions"), baseline, prompt_ids)


def _with_texts(
    directory: RunDirectory,
    picked: dict[str, list[Picked]],
    completions: CompletionStatistics | None,
    decode: Decode | None,
    seed: int,
) -> tuple[list[Pair], Review]:
    """The pairs that are shown, and those to be judged."""
    if not picked or completions is None:
        return [], ([], [])
    wanted = list(report_pairs.shown(picked))
    ids = {pair.prompt_id for pair in [*(pair for _, pair in wanted), *picked["review"]]}
    rows = report_pairs.rows_of(directory.path("completions"), completions.files, ids)
    made = (report_pairs.pair_of(why, p, rows[p.prompt_id], decode) for why, p in wanted if p.prompt_id in rows)
    return [pair for pair in made if pair], report_pairs.review(picked["review"], rows, seed)


def _decode(directory: RunDirectory) -> Decode | None:
    """The decoder of the run's tokens: its own reward model has the language model's tokenizer, and lies beside it.

    Code of a model runs only where this command's own settings allow it, whatever the run's were.
    """
    config = directory.manifest["stages"]["generate"].get("config") or {}
    places = [directory.path("reward_model")] if directory.is_done("train_reward") else []
    places += [config["models"]["language"]] if "language" in config.get("models", {}) else []
    for place in places:
        try:
            trust = directory.config.models.trust_remote_code
            tokenizer = load_tokenizer(place, "the tokenizer of the run", trust_remote_code=trust)
        except (UserError, TransientError) as error:
            log.info(f"report: {error}")
            continue
        return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    return None


if __name__ == "__main__":
    from pipelines.runtime.launch import main

    main(run, writes=False)
