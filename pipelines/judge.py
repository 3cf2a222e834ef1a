"""A second opinion: a judge scores the completions of some of a run's prompts, into judged/."""

import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipelines import generate, judges, train_reward
from pipelines.completions import COLUMNS, completions_of
from pipelines.runtime.job_context import JobContext
from pipelines.runtime.job_log import Ticker, log
from pipelines.runtime.run_directory import RunDirectory
from rgtg import storage, table_files
from rgtg.config import OWN_JUDGE
from rgtg.evaluation.judge import Judge
from rgtg.evaluation.pair_figures import kendall
from rgtg.methods import reward_name
from rgtg.models.hub import pinned
from rgtg.preferences.selection import fraction
from rgtg.training_settings import TrainReward

STAGE = "judge"
PART_ROWS = 10_000

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
    directory, uri = job.directory, judge_of(job)
    if uri is None:
        return
    inputs = {
        "completions": directory.fingerprint_of(generate.STAGE),
        "preferences.judge": job.digests.model(uri),
        "preferences.judge_prompts": job.config.preferences.judge_prompts,
    }
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
    log.info(f"judge: the completions of {judged:,} prompts have a second opinion")


def judge_of(job: JobContext) -> str | None:
    """The path of the run's judge; None where it has none, and where its second reward model is not trained."""
    judge, directory = job.config.preferences.judge, job.directory
    if judge is None or judge != OWN_JUDGE:
        return judge and pinned(storage.absolute(judge), "preferences.judge")
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
    settings = job.config.preferences
    tables = list(table_files.read_tables(target, ["scores"]))
    done, judged = sum(t.num_rows for t in tables), sum(t.num_rows - t["scores"].null_count for t in tables)
    part = settings.judge_prompts / max(1, job.directory.counts(generate.STAGE)["rows"])
    said = Ticker()
    with judges.judging(job, uri, "preferences.judge", job.config.generate.max_actors) as judge:
        for number, rows in enumerate(_chunks(job.directory.path("completions"), part, done), len(tables)):
            found = _judged(rows, judge)
            path = storage.join(target, f"part-{number:05d}.parquet")
            table_files.write_table(path, pa.Table.from_pylist(found, schema=SCHEMA))
            judged += sum(row["scores"] is not None for row in found)
            said(f"judge: {judged:,} prompts judged")
    return judged


def _chunks(source: str, part: float, done: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of completions/ after the first `done`, with the completions of those alone that are to be judged: the
    same `part` of the prompts in every run.
    """
    chunk: list[dict[str, Any]] = []
    for table in table_files.read_tables(source, COLUMNS):
        skipped = min(done, table.num_rows)
        done -= skipped
        for row in table.slice(skipped).to_pylist():
            asked = row["error"] is None and fraction(f"judge/{row['prompt_id']}") < part
            completions = completions_of(row) if asked else None
            chunk.append({"prompt_id": row["prompt_id"], "prompt": row["prompt"], "completions": completions})
        if len(chunk) >= PART_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _judged(rows: list[dict[str, Any]], judge: Judge) -> list[dict[str, Any]]:
    """Rows of judged/, in the order of `rows`."""
    texts = [(row["prompt"], c["text"]) for row in rows for c in row["completions"] or ()]
    scores = iter(judge([prompt for prompt, _ in texts], [text for _, text in texts]) if texts else ())
    found = []
    for row in rows:
        given = row["completions"]
        by_judge = [next(scores) for _ in given] if given else None
        agreement = kendall([c["score"] for c in given], by_judge) if by_judge else None
        found.append({"prompt_id": row["prompt_id"], "scores": by_judge, "agreement": agreement})
    return found
