"""A second opinion: a judge scores the completions of some of a run's prompts, into judged/."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from pipelines import generate, judges, train_reward
from pipelines.completions import COLUMNS, completions_of
from pipelines.runtime.fingerprints import Inputs
from pipelines.runtime.job_context import JobContext
from pipelines.runtime.job_log import Ticker, log
from pipelines.runtime.run_directory import RunDirectory
from pipelines.selecting import Selection
from rgtg import config_section, storage, table_files
from rgtg.config import OWN_JUDGE
from rgtg.endpoint import Endpoint
from rgtg.evaluation.judge import Judge
from rgtg.evaluation.pair_figures import kendall
from rgtg.methods import reward_name
from rgtg.models.hub import pinned
from rgtg.path_syntax import is_endpoint
from rgtg.preferences.selection import fraction
from rgtg.training_settings import TrainReward

STAGE = "judge"
PART_ROWS, PART_ASKED = 10_000, 500  # of a file: as much as a stop may cost

Scores = list[float | None] | None  # of the completions of a prompt; None where they were not judged
Opinion = Callable[[list[dict[str, Any]]], list[Scores]]  # of rows of completions/

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("scores", pa.list_(pa.float32())),  # of the completions, in their order; null where they were not judged
        ("agreement", pa.float32()),  # Kendall's tau-b of the run's scores and the judge's
    ]
)


def own_judge(settings: TrainReward) -> TrainReward:
    """How the run's second reward model is trained: on the same pairs, by the other objective."""
    other = "full" if settings.objective == "partial" else "partial"
    return settings.model_copy(update={"objective": other, "head": None})


def run_stage(job: JobContext) -> None:
    """Judge completions where there is a judge. What an earlier attempt has judged stays."""
    directory, uri, settings = job.directory, judge_of(job), job.config.preferences
    if uri is None:
        return
    inputs: Inputs = {
        "completions": directory.fingerprint_of(generate.STAGE),
        "preferences.judge": uri if is_endpoint(uri) else job.digests.model(uri),
        "preferences.judge_prompts": settings.judge_prompts,
    }
    if is_endpoint(uri):  # which is asked about the pairs
        inputs |= {f"preferences.{name}": value for name, value in config_section.inputs_of(settings).items()}
        inputs["preferences.judge_model"] = settings.judge_model
    target = directory.path("judged")
    state = directory.begin(STAGE, inputs, rerunnable=True)
    if state == "done":
        return
    begun = time.monotonic()
    if state == "new":
        storage.remove(target)
    storage.make_directory(target)
    judged = _judge(job, uri, target)
    directory.finish(STAGE, {"prompts": judged}, time.monotonic() - begun)
    log.info(f"judge: {judged:,} prompts have a second opinion")


def judge_of(job: JobContext) -> str | None:
    """The path or address of the run's judge; None where it has none, or its second reward model is not trained."""
    judge, directory = job.config.preferences.judge, job.directory
    if judge is None or is_endpoint(judge):
        return judge
    if judge != OWN_JUDGE:
        return pinned(storage.absolute(judge), "preferences.judge")
    if not directory.is_done(train_reward.STAGE):
        return None
    settings = own_judge(directory.config_of(train_reward.STAGE).train_reward)
    name = reward_name(settings.objective, settings.head)
    return directory.path(f"reward_model_{name}") if directory.is_done(f"{train_reward.STAGE}_{name}") else None


def of_rows(directory: RunDirectory) -> Iterator[dict[str, Any]]:
    """A row of judged/ for every row of completions/, in the same order."""
    for table in table_files.read_tables(directory.path("judged")):
        yield from table.to_pylist()


def _judge(job: JobContext, uri: str, target: str) -> int:
    """Judge the rows of completions/ that have no row in `target` yet, and return how many prompts are judged."""
    settings, source = job.config.preferences, job.directory.path("completions")
    tables = list(table_files.read_tables(target, ["scores"]))
    done, judged = sum(t.num_rows for t in tables), sum(t.num_rows - t["scores"].null_count for t in tables)
    part = settings.judge_prompts / max(1, job.directory.counts(generate.STAGE)["rows"])
    said = Ticker()
    with _opinion(job, uri) as opinion:
        for number, rows in enumerate(_chunks(source, part, done), len(tables)):
            asked = [row for row in rows if row["completions"]]
            found = dict(zip((row["prompt_id"] for row in asked), opinion(asked), strict=True))
            made = [_row(row, found.get(row["prompt_id"])) for row in rows]
            path = storage.join(target, f"part-{number:05d}.parquet")
            table_files.write_table(path, pa.Table.from_pylist(made, schema=SCHEMA))
            judged += sum(scores is not None for scores in found.values())
            said(f"judge: {judged:,} prompts judged")
    return judged


@contextmanager
def _opinion(job: JobContext, uri: str) -> Iterator[Opinion]:
    """The judge at `uri`, of rows of completions/."""
    settings = job.config.preferences
    if is_endpoint(uri):
        endpoint = Endpoint(uri, settings.judge_model or "", settings.judge_key)
        selection = Selection(job.directory.path("completions"), settings)
        yield lambda rows: _by_endpoint(endpoint, selection, rows)
    else:
        with judges.judging(job, uri, "preferences.judge", job.config.generate.max_actors) as judge:
            yield lambda rows: _by_model(judge, rows)


def _by_model(judge: Judge, rows: list[dict[str, Any]]) -> list[Scores]:
    """Scores of all completions."""
    texts = [(row["prompt"], c["text"]) for row in rows for c in row["completions"]]
    scores = iter(judge([prompt for prompt, _ in texts], [text for _, text in texts]) if texts else ())
    return [[next(scores) for _ in row["completions"]] for row in rows]


def _by_endpoint(endpoint: Endpoint, selection: Selection, rows: list[dict[str, Any]]) -> list[Scores]:
    """Scores of the two completions of a pair: how often each is preferred, asked in both places; of no pair, none."""
    pairs = [selection.of(row) for row in rows]
    asked = [(row, pair) for row, pair in zip(rows, pairs, strict=True) if not isinstance(pair, str)]
    verdicts = iter(endpoint.verdicts([(row["prompt"], p[0]["text"], p[-1]["text"]) for row, p in asked]))
    found: list[Scores] = []
    for row, pair in zip(rows, pairs, strict=True):
        scores: list[float | None] = [None] * len(row["completions"])
        if isinstance(pair, str):
            found.append(None)
            continue
        places = next(verdicts)
        if None not in places:
            preferred = sum(verdict or 0.0 for verdict in places) / 2
            scores[pair[0]["index"]], scores[pair[-1]["index"]] = preferred, 1 - preferred
        found.append(scores)
    return found


def _chunks(source: str, part: float, done: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of completions/ after the first `done`, with the completions of those alone that are to be judged: the
    same `part` of the prompts in every run.
    """
    chunk: list[dict[str, Any]] = []
    asked = 0
    for table in table_files.read_tables(source, COLUMNS):
        skipped = min(done, table.num_rows)
        done -= skipped
        for row in table.slice(skipped).to_pylist():
            if row["error"] is not None or fraction(f"judge/{row['prompt_id']}") >= part:
                row["completions"] = None
            asked += row["completions"] is not None
            chunk.append(row)
            if len(chunk) == PART_ROWS or asked == PART_ASKED:
                yield chunk
                chunk, asked = [], 0
    if chunk:
        yield chunk


def _row(row: dict[str, Any], scores: Scores) -> dict[str, Any]:
    agreement = None
    if scores and None not in scores:
        agreement = kendall([c["score"] for c in completions_of(row)], [score or 0.0 for score in scores])
    return {"prompt_id": row["prompt_id"], "scores": scores, "agreement": agreement}
