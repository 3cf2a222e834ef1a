"""Gates over a run's pairs: what must hold before anyone trains on them. A changed setting holds them anew."""

import time
from typing import Any

from pipelines import generate, judge, summary, train_reward
from pipelines.completions import COLUMNS, completions_of
from pipelines.runtime.job_context import JobContext
from pipelines.runtime.job_log import Ticker, log
from pipelines.runtime.run_directory import RunDirectory, fingerprint_in
from rgtg import storage, table_files
from rgtg.errors import QualityError, UserError
from rgtg.evaluation import intervals
from rgtg.evaluation.gates import hold, verdict_of
from rgtg.evaluation.intervals import Figure
from rgtg.evaluation.pair_figures import CompletionFigures, PairFigures
from rgtg.path_syntax import is_endpoint
from rgtg.report.card import dataset_card

STAGE = "gates"
PREFERENCES = "preferences"
WITH_ERROR = "prompts with an error"  # of the reasons for which a prompt has no pair
PAIR_COLUMNS = [
    *("prompt_id", "prompt", "chosen", "rejected", "score_chosen", "score_margin"),
    *("chosen_tokens", "rejected_tokens", "chosen_finish", "judge_score_chosen", "judge_score_rejected"),
]


def run_stage(job: JobContext) -> None:
    """Hold every gate against the run's pairs; the manifest gets the figures, whatever the verdict."""
    directory, settings = job.directory, job.config.gates
    inputs: dict[str, Any] = {"preferences": directory.fingerprint_of(PREFERENCES)} | {
        f"gates.{name}": value for name, value in settings.model_dump().items() if name != "on_fail"
    }
    other = settings.compare_with and storage.absolute(settings.compare_with)
    if other:
        inputs["gates.compare_with"] = fingerprint_in(other, PREFERENCES, "gates.compare_with")
    if directory.begin(STAGE, inputs, rerunnable=True) == "done":
        return
    begun = time.monotonic()
    figures, shown = _figures(job, other)
    gates = hold(figures, settings.model_dump())
    for gate in gates:
        if gate.verdict in ("warn", "fail"):
            log.warning(f"gates: {gate.verdict.upper()} {gate.name}: {gate.sentence}")
    held = [gate.figures() for gate in gates]
    _write_card(directory, held)
    counts = {"verdict": verdict_of(gates), "gates": held, "shown": shown}
    directory.finish(STAGE, counts, time.monotonic() - begun)


def _write_card(directory: RunDirectory, gates: list[dict[str, Any]]) -> None:
    made_by, settings = directory.config_of(generate.STAGE), directory.config_of(PREFERENCES).preferences
    said = summary.warnings_of(directory)
    card = dataset_card(made_by, settings, directory.counts(PREFERENCES), said, gates)
    storage.write_bytes(directory.path("report", "README.md"), card.encode())


def check(job: JobContext) -> None:
    """Raises QualityError where a gate has failed, in this or an earlier attempt; all data are written by then."""
    failed = [gate for gate in job.directory.counts(STAGE)["gates"] if gate["verdict"] == "fail"]
    if failed and job.config.gates.on_fail == "fail":
        raise QualityError(
            f"the pairs of {job.directory.uri!r} are written and did not pass: "
            f"{'; '.join(gate['sentence'] for gate in failed)}. Look at report/ before you train on them; a gate is "
            "held again, without new completions, when its setting changes"
        )


def _figures(job: JobContext, other: str | None) -> tuple[dict[str, Figure | None], dict[str, Any]]:
    """The figures of all gates, and others to read beside them."""
    directory, said = job.directory, Ticker()
    uri = judge.judge_of(job)
    of_completions = CompletionFigures(by_endpoint=bool(uri) and is_endpoint(str(uri)))
    opinions = judge.of_rows(directory) if uri else None
    for table in table_files.read_tables(directory.path("completions"), COLUMNS):
        for row in table.to_pylist():
            judged = next(opinions)["scores"] if opinions else None
            if row["error"] is None:
                of_completions.add(row["prompt_id"], completions_of(row), judged)
        said(f"gates: {len(of_completions.likeness):,} prompts looked at")
    of_pairs = _pairs(directory.uri)
    figures = _of_counts(directory) | of_completions.figures() | (of_pairs.figures() if of_pairs else {})
    shown = of_pairs.shown() if of_pairs else {}
    before = _pairs(other) if other else None
    if of_pairs and before:
        drift = of_pairs.drift(before)
        shown |= {f"drift of {name}": figure for name, figure in drift.items()}
        figures["drift"] = max((figure for figure in drift.values() if figure), default=None)
    return figures, {name: figure._asdict() for name, figure in shown.items() if figure}


def _pairs(run: str) -> PairFigures | None:
    """Figures of the pairs of a run; None for rankings. Raises UserError for pairs of an older version."""
    source = storage.join(run, "preferences")
    columns = table_files.schema_of(source).names
    if "chosen" not in columns:
        return None
    if lacking := [name for name in PAIR_COLUMNS if name not in columns and not name.startswith("judge_")]:
        raise UserError(
            f"the preferences of the run {run!r} are of an older version, without {', '.join(lacking)}; run `rgtg "
            "preferences` in it once"
        )
    figures = PairFigures()
    for table in table_files.read_tables(source, [name for name in PAIR_COLUMNS if name in columns]):
        for row in table.to_pylist():
            figures.add(row)
    return figures


def _of_counts(directory: RunDirectory) -> dict[str, Figure | None]:
    """Figures that stages have counted."""
    dropped = dict(directory.counts(PREFERENCES)["dropped"])
    dropped.pop(WITH_ERROR, None)
    without = sum(dropped.values())
    total = without + sum(directory.counts(PREFERENCES)[split] for split in ("train", "test"))
    figures = {"without_pair": intervals.share(without, total)}
    if directory.is_done(train_reward.STAGE) and not directory.config_of(generate.STAGE).models.reward:
        accuracy = directory.counts(train_reward.STAGE)["accuracy"]
        n = accuracy["pairs"].get("full", 0)
        figures["learned"] = intervals.share(accuracy["by_fraction"].get("1.0", 0.5) * n, n)
    return figures
