"""The first stage of generation: prompts of any format, checked, identified and deduplicated into the run's prompts/.

It runs on the driver alone, and reads the files twice, one at a time: once for their ids and types, which are those of
all files, and once to write. What it keeps in memory of a row between the two is 32 bytes. Rows that are not prompts
stay in the table with the reason in `error`; files that cannot be read are skipped and listed.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines import summary
from pipelines.prompt_rows import PromptRows, prompt_rows, read_again
from pipelines.prompt_survey import DUPLICATE, RENAMED, Survey, is_messages
from pipelines.row_errors import Reasons, check_errors
from pipelines.runtime.job_context import JobContext
from pipelines.runtime.job_log import Ticker, log
from pipelines.runtime.run_directory import RunDirectory
from rgtg import storage, table_files
from rgtg.config import Config
from rgtg.errors import UserError, first_line
from rgtg.input_files import Found, InputFile, Unreadable, check_share, first_rows, lines
from rgtg.input_rows import Row
from rgtg.parquet import UNREADABLE
from rgtg.passed_through import as_type
from rgtg.schemas import PROMPT_COLUMNS

STAGE = "prompts"
FILE_ROWS, FILE_BYTES = 100_000, 1 << 26  # of input, in a file of the table
LOOKED_FILES, LOOKED_ROWS = 3, 256


def run(config: Config) -> RunDirectory:
    """The stage alone, as a command."""
    job = JobContext.open(config, models=False, prompts=True)
    run_stage(job)
    check(job)
    summary.write(job.directory)
    return job.directory


def run_stage(job: JobContext) -> None:
    """Read `generate.prompts` into prompts/. Raises UserError where there is no prompt, or one id on two prompts."""
    config, directory = job.config, job.directory
    begun = time.monotonic()
    files = job.digests.files(config.generate.prompts)
    free = not directory.has_begun("generate") or (config.generate.incremental and _grew(directory, files))
    target = directory.path("prompts")
    state = directory.begin(STAGE, {"generate.prompts": files}, rerunnable=free)
    if state == "done":
        return
    found = job.digests.found(config.generate.prompts)
    counts = take_in(found, target, config.generate.max_error_rate, resume=state == "resume")
    if not counts["rows"]:
        raise UserError(f"there is no prompt at {', '.join(map(repr, config.generate.prompts))}")
    directory.finish(STAGE, counts, time.monotonic() - begun)
    log.info(
        f"prompts: {counts['rows']} rows ({counts['errors']} with an error, {counts['duplicates']} duplicates dropped)"
        f"{lines(counts['skipped_files'])}"
    )


def check(job: JobContext) -> None:
    """Raises UserError where more rows are no prompts than the config allows, before a model is loaded."""
    check_errors(job.config, job.directory.counts(STAGE), job.directory.path("prompts"))


def _grew(directory: RunDirectory, files: list[dict[str, Any]]) -> bool:
    """Whether every file that was read before is still there, unchanged."""
    before = directory.inputs_of(STAGE).get("generate.prompts", [])
    return all(file in files for file in before)


class Looked(NamedTuple):
    """What the first rows of the files hold."""

    rows: int
    usable: int
    errors: dict[str, int]  # by kind
    messages: bool  # in place of text

    def __str__(self) -> str:
        return f"{self.usable} of the first {self.rows} rows are prompts{self.reasons}"

    @property
    def reasons(self) -> str:
        return "".join(f"; {times} times {reason!r}" for reason, times in self.errors.items())


def look(files: list[InputFile]) -> Looked:
    """Read the first rows of the first files that can be read.

    Raises UserError where these are all rows and none is a prompt, and for a file without a column of prompts.
    """
    read: list[Row] = []
    whole = len(files) <= LOOKED_FILES
    for file in files[:LOOKED_FILES]:
        with suppress(Unreadable):
            of_file = prompt_rows(file, first_rows(file, LOOKED_ROWS)).rows
            whole = whole and len(of_file) < LOOKED_ROWS
            read += of_file
    kinds = {isinstance(row["prompt"], list): repr(row["prompt"])[:100] for row in read if not row["error"]}
    errors = [row["error"] for row in read if row["error"]]
    reasons = Reasons()
    reasons.add(errors)
    looked = Looked(len(read), len(read) - len(errors), reasons.most_common(), is_messages(kinds))
    if whole and files and not looked.usable:
        named = ", ".join(repr(file.path) for file in files)
        raise UserError(f"none of the {len(read)} rows of {named} is a prompt{looked.reasons}")
    return looked


def take_in(found: Found, target: str, max_error_rate: float, *, resume: bool = False) -> dict[str, Any]:
    """Read all files found, write the table of prompts to `target` and return the counts.

    With `resume` the files that are there already, of the same input, stay. Raises UserError where a larger fraction
    of the files than `max_error_rate` cannot be read, where two prompts have one id, or where text and messages mix.
    """
    survey = Survey()
    said = Ticker()
    for number, file in enumerate(found.files, 1):
        survey.add(file)
        said(f"prompts: {number:,} of {len(found.files):,} files looked at, {survey.num_rows:,} rows")
    found = found.without(survey.unreadable)
    check_share(len(survey.files), found, max_error_rate, "generate.prompts")
    schema, parts = survey.schema(), list(_parts(survey.files, survey.fates()))
    if not resume:
        storage.remove(target)
    storage.make_directory(target)
    counts: Counter[str] = Counter(rows=0, errors=0)
    reasons = Reasons()
    for number, part in enumerate(parts):
        path = storage.join(target, f"part-{number:05d}.parquet")
        table = _written(path, schema, sum(int((fates != DUPLICATE).sum()) for _, fates in part)) if resume else None
        if table is None:
            table = pa.concat_tables(_table(read_again(file), fates, schema) for file, fates in part)
            table_files.write_table(path, table)
        errors = table["error"].drop_null().to_pylist()
        counts.update(rows=table.num_rows, errors=len(errors))
        reasons.add(errors)
        said(f"prompts: {counts['rows']:,} of {survey.num_rows:,} rows written")
    return {
        "files": len(survey.files),
        "skipped_files": found.skipped,
        **counts,
        "duplicates": survey.num_rows - counts["rows"],
        "error_reasons": reasons.most_common(),
    }


def _written(path: str, schema: pa.Schema, num_rows: int) -> pa.Table | None:
    """The errors of a part that an earlier attempt has written; None where there is none such."""
    if not storage.exists(path) or not table_files.schema_of(path).equals(schema):
        return None
    (table,) = table_files.read_tables(path, ["error"])
    return table if table.num_rows == num_rows else None


def _parts(files: list[InputFile], fates: list[np.ndarray]) -> Iterator[list[tuple[InputFile, np.ndarray]]]:
    """The files, and what becomes of their rows, of each part of the table: about FILE_ROWS rows or less."""
    part: list[tuple[InputFile, np.ndarray]] = []
    rows = size = 0
    for file, of_file in zip(files, fates, strict=True):
        if part and (rows + len(of_file) > FILE_ROWS or size + file.size > FILE_BYTES):
            yield part
            part, rows, size = [], 0, 0
        part.append((file, of_file))
        rows, size = rows + len(of_file), size + file.size
    yield part


def _table(of: PromptRows, fates: np.ndarray, schema: pa.Schema) -> pa.Table:
    """The kept rows of a file, with their passed-through columns."""
    if len(of.rows) != len(fates):
        raise UserError(f"{of.path!r} changed while the prompts were read; start the job again")
    for i, row in enumerate(of.rows):
        if fates[i] == RENAMED:
            row["error"] += f" (its prompt_id {row['prompt_id']!r} is another row's too)"
        if fates[i] == RENAMED or row["prompt_id"] is None:
            row["prompt_id"] = hashlib.sha256(f"{of.path}:{i}".encode()).hexdigest()
    kept = np.flatnonzero(fates != DUPLICATE)
    columns = []
    for field in schema:
        if field.name in PROMPT_COLUMNS:
            columns.append(pa.array([of.rows[i][field.name] for i in kept], field.type))
        elif field.name in of.others:
            columns.append(_others(of, field).take(pa.array(kept)))
        else:
            columns.append(pa.nulls(len(kept), field.type))
    return pa.table(columns, schema=schema)


def _others(of: PromptRows, field: pa.Field) -> pa.Array | pa.ChunkedArray:
    """A passed-through column in its common type. Raises UserError for values that cannot become text."""
    try:
        return as_type(of.others[field.name], field.type)
    except UNREADABLE as error:
        raise UserError(
            f"the column {field.name!r} of {of.path!r} has another type in another file and cannot be converted to "
            f"text ({first_line(error)}); remove it, or give both files one type"
        ) from error


if __name__ == "__main__":
    from pipelines.runtime.launch import main

    main(run)
