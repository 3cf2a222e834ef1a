"""The page of a run, from what is on disk: report/index.html and report.json, and pairs for people to judge.

`rgtg report run.root=... run.id=...` writes it for any run, finished or not.
"""

import json
import time
from typing import Any

from pipelines import report_pairs, summary
from pipelines.report_statistics import CompletionStatistics, PairStatistics, completion_statistics, pair_statistics
from pipelines.runtime.job_log import log
from pipelines.runtime.run_directory import SUCCESS, RunDirectory, manifest_of
from rgtg import storage
from rgtg.config import Config
from rgtg.errors import TransientError, UserError
from rgtg.evaluation.stats import Mean
from rgtg.methods import METHODS, STRATEGIES
from rgtg.models.loading import load_tokenizer
from rgtg.report.accumulate import Histogram, histogram, rank_correlation
from rgtg.report.card import without_places
from rgtg.report.page import render
from rgtg.report.run_figures import Cost, Gate, Gates, Length, Page, Pair, Sides
from rgtg.report.token_tint import Decode, full_tint

PAGE, FIGURES, REVIEW, ANSWERS = "index.html", "report.json", "review.jsonl", "review_answers.jsonl"
DIGEST = "sha256:"  # before the digest of a model's files, in the inputs of a stage


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


def collect(directory: RunDirectory) -> tuple[Page, tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """The page's figures and pairs, and the rows of the review with their answers."""
    done = {stage: directory.counts(stage) for stage in directory.stages if directory.is_done(stage)}
    config = _config(directory)
    seed = config.get("run", {}).get("seed", 0)
    missing: dict[str, str] = {}
    of_pairs = _pairs_statistics(directory, seed, missing)
    picked = of_pairs.picked if of_pairs else {}
    prompt_ids = {pair.prompt_id for pairs in picked.values() for pair in pairs}
    of_completions = _completions_statistics(directory, prompt_ids, missing)
    pairs, review = _with_texts(directory, picked, of_completions, seed, missing)
    written = _summary(directory)
    counts, generated = done.get("preferences", {}), done.get("generate", {})
    method = config.get("generate", {}).get("method") or Config().generate.method
    strategy = directory.inputs_of("preferences").get("preferences.select")
    if not counts:
        missing["without"] = "No pairs have been made yet."
    page = Page(
        run_id=str(directory.manifest["run_id"]),
        created=directory.manifest["created"],
        method=method if generated else None,
        strategy=strategy if counts else None,
        complete=storage.exists(directory.path(SUCCESS)),
        ranked=strategy in STRATEGIES and STRATEGIES[strategy].key is None,
        train=counts.get("train"),
        test=counts.get("test"),
        prompts=done.get("prompts", generated).get("rows"),
        completions=generated.get("completions"),
        mean_margin=counts.get("mean_margin"),
        right=_mean(written.get("right")),
        gates=_gates(done["gates"]) if "gates" in done else None,
        warnings=[str(warning) for warning in written.get("warnings", [])],
        sides=_sides(method, of_pairs, of_completions, written, missing),
        histograms=_histograms(of_pairs, of_completions, missing),
        length=_length(of_pairs, of_completions),
        without=list(counts.get("dropped", {}).items()),
        pairs=pairs,
        full=full_tint(p.increment for pair in pairs for s in (pair.chosen, pair.rejected) for p in s.pieces),
        cost=_cost(directory, done),
        settings=_settings(config),
        digests=_digests(directory),
        versions=(directory.manifest.get("attempts") or [directory.manifest])[-1].get("versions", {}),
        missing=missing,
    )
    return page, review


def _config(directory: RunDirectory) -> dict[str, Any]:
    """The settings of the stage that began last, as they were written: another version may not know them all."""
    stages = list(directory.manifest["stages"].values())
    return (stages[-1].get("config") or {}) if stages else {}


def _summary(directory: RunDirectory) -> dict[str, Any]:
    """The run's summary, which knows the sandbox's true reward."""
    file = directory.path("report", "summary.json")
    return storage.read_json(file) if storage.exists(file) else {}


def _has(directory: RunDirectory, stage: str, table: str) -> bool:
    """Whether a stage is finished and its table is still there."""
    uri = directory.path(table)
    return directory.is_done(stage) and storage.exists(uri) and bool(storage.list_files(uri, (".parquet",)))


def _pairs_statistics(directory: RunDirectory, seed: int, missing: dict[str, str]) -> PairStatistics | None:
    if not _has(directory, "preferences", "preferences"):
        missing["pairs"] = "The run has no finished pairs."
        return None
    found = pair_statistics(directory.path("preferences"), seed)
    if found is None:
        missing["pairs"] = "The pairs of this run have no scores."
    return found


def _completions_statistics(
    directory: RunDirectory, prompt_ids: set[str], missing: dict[str, str]
) -> CompletionStatistics | None:
    if not _has(directory, "generate", "completions"):
        missing["scores"] = "The run has no finished completions."
        return None
    apart = _has(directory, summary.BASELINE, "completions_unguided")
    baseline = directory.path("completions_unguided") if apart else None
    return completion_statistics(directory.path("completions"), baseline, prompt_ids)


def _with_texts(
    directory: RunDirectory,
    picked: dict[str, list[Any]],
    completions: CompletionStatistics | None,
    seed: int,
    missing: dict[str, str],
) -> tuple[list[Pair], tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """The pairs that are shown, and those to be judged."""
    if not picked:
        return [], ([], [])
    if completions is None:
        missing["pairs"] = "The completions that the pairs were made of are gone, and with them the tokens' rewards."
        return [], ([], [])
    wanted = list(report_pairs.shown(picked))
    ids = {pair.prompt_id for pair in [*(pair for _, pair in wanted), *picked["review"]]}
    rows = report_pairs.rows_of(directory.path("completions"), completions.files, ids)
    decode = _decode(directory) if wanted else None
    made = [report_pairs.pair_of(why, p, rows[p.prompt_id], decode) for why, p in wanted if p.prompt_id in rows]
    pairs = [pair for pair in made if pair]
    if pairs and decode is None:
        missing["tokens"] = "No tokenizer of the run can be loaded here, so the texts stand without tokens."
    elif pairs and not any(side.pieces for pair in pairs for side in (pair.chosen, pair.rejected)):
        missing["tokens"] = "The completions of this run have no reward for each token."
    return pairs, report_pairs.review(picked["review"], rows, seed)


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


def _gates(counts: dict[str, Any]) -> Gates:
    names = ("verdict", "figure", "low", "high", "n", "warn", "fail")
    gates = [
        Gate(str(gate["name"]), sentence=gate.get("sentence") or "", **{name: gate.get(name) for name in names})
        for gate in counts["gates"]
    ]
    return Gates(counts["verdict"], gates)


def _sides(
    method: str,
    pairs: PairStatistics | None,
    completions: CompletionStatistics | None,
    written: dict[str, Any],
    missing: dict[str, str],
) -> list[Sides]:
    """Guided against unguided by all who scored them, then chosen against rejected by the guide and by the judge."""
    guided = "guided" if method not in METHODS or METHODS[method].needs_reward else "of the method"
    found = []
    if completions and completions.gain.n:
        unguided, own = (moments.mean() for moments in completions.paired)
        found.append(Sides("reward model", ("unguided", guided), (unguided, own), completions.gain.mean()))
    elif completions:
        missing["scores"] = "There are no unguided completions of the same prompts to compare with."
    for scorer, (own, unguided, gain) in written.get("scores", {}).items():
        if scorer != "score" and gain:
            found.append(Sides(scorer, ("unguided", guided), (_mean(unguided), _mean(own)), _mean(gain)))
    if pairs:
        for scorer, scores in (("reward model, in the pairs", pairs.scores), ("judge, in the pairs", pairs.judged)):
            both = scores["rejected"].mean(), scores["chosen"].mean()
            gain = pairs.judged_gain.mean() if scores is pairs.judged else pairs.margin.mean()
            if any(both):
                found.append(Sides(scorer, ("rejected", "chosen"), both, gain))
        if not pairs.judged_gain.n:
            missing["judge"] = "The run has no judge: nobody but its own reward model has looked at the pairs."
    return found


def _histograms(
    pairs: PairStatistics | None, completions: CompletionStatistics | None, missing: dict[str, str]
) -> dict[str, Histogram]:
    series: dict[str, dict[str, Any]] = {"score": {}, "margin": {}, "tokens": {}}
    totals = dict.fromkeys(series, 0)
    if pairs and pairs.sample.n:
        chosen, rejected, chosen_tokens, rejected_tokens = pairs.sample.rows.T
        series["score"] |= {"chosen": chosen, "rejected": rejected}
        series["margin"] |= {"margin": chosen - rejected}
        series["tokens"] |= {"chosen": chosen_tokens, "rejected": rejected_tokens}
        totals = {"score": 2 * pairs.sample.n, "margin": pairs.sample.n, "tokens": 2 * pairs.sample.n}
    if completions and completions.every.n:
        series["score"]["all"] = completions.every.rows[:, 1]
        series["tokens"]["all"] = completions.every.rows[:, 0]
        totals = totals | {name: totals[name] + completions.every.n for name in ("score", "tokens")}
    made = {name: histogram(of, totals[name]) for name, of in series.items() if of}
    found = {name: of for name, of in made.items() if of}
    if not found:
        missing["distributions"] = "There is nothing with a score yet."
    return found


def _length(pairs: PairStatistics | None, completions: CompletionStatistics | None) -> Length | None:
    if not completions or not completions.sample.n:
        return None
    points = completions.sample.rows
    longer = pairs.longer.mean() if pairs else None
    return Length(
        rank=rank_correlation(*points.T),
        within=completions.within.correlation(),
        longer=longer.value if longer else None,
        sample=len(points),
        points=points,
    )


def _cost(directory: RunDirectory, done: dict[str, dict[str, Any]]) -> Cost:
    seconds = {stage: took for stage, took in directory.seconds().items() if stage in done}
    decoded = [stage for stage in ("generate", summary.BASELINE) if done.get(stage, {}).get("decode_seconds")]
    decoding, tokens = (sum(done[stage][name] for stage in decoded) for name in ("decode_seconds", "decoded_tokens"))
    on_devices = sum(
        took * _devices(directory, stage)
        for stage, took in seconds.items()
        if stage in decoded or stage.startswith("train_reward")
    )
    pairs = sum(done.get("preferences", {}).get(split, 0) for split in ("train", "test"))
    whole = sum(seconds.values())
    return Cost(
        seconds=seconds,
        device_hours=on_devices / 3600 if on_devices else None,
        tokens=done.get("generate", {}).get("tokens"),
        tokens_per_second=tokens / decoding if decoded else None,
        pairs_per_hour=3600 * pairs / whole if pairs and whole else None,
    )


def _devices(directory: RunDirectory, stage: str) -> float:
    """Devices that a stage may have held: a worker of training takes one, an actor of decoding its part of one."""
    config = directory.manifest["stages"][stage].get("config") or {}
    if stage.startswith("train_reward"):
        return config.get("train_reward", {}).get("num_workers", 1)
    generate = config.get("generate", {})
    return generate.get("max_actors", 1) * generate.get("gpus_per_actor", 1.0)


def _settings(config: dict[str, Any]) -> dict[str, str]:
    """What was not left at its default, without places: a page is shown around."""
    flat = {f"{section}.{key}": value for section, of in config.items() for key, value in of.items()}
    said = without_places({key: value for key, value in flat.items() if key not in ("run.root", "run.id")})
    return {key: value if isinstance(value, str) else json.dumps(value)[:1000] for key, value in said.items()}


def _digests(directory: RunDirectory) -> dict[str, str]:
    return {
        f"{stage}: {name}": value
        for stage in directory.stages
        for name, value in directory.inputs_of(stage).items()
        if isinstance(value, str) and value.startswith(DIGEST)
    }


def _mean(written: Any) -> Mean | None:
    return Mean(*written) if written else None


if __name__ == "__main__":
    from pipelines.runtime.launch import main

    main(run, writes=False)
