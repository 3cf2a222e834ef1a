"""The first stage of generation: prompts of any format, checked, identified and deduplicated into the run's prompts/.

It runs on the driver alone. Rows that are not prompts stay in the table with the reason in `error`; files that cannot
be read are skipped and listed.
"""

import hashlib
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from pipelines import summary
from pipelines.row_errors import Reasons, check_errors
from pipelines.runtime.job_context import JobContext
from pipelines.runtime.job_log import log
from pipelines.runtime.run_directory import RunDirectory
from rgtg import storage, table_files
from rgtg.chat import check_prompt, prompt_id
from rgtg.config import Config
from rgtg.errors import UserError, first_line
from rgtg.input_files import Found, InputFile, RawRows, Unreadable, check_share, first_rows, lines, read_rows
from rgtg.input_rows import Row, is_unicode
from rgtg.messages import SYSTEMS, Unusable, system_of, text_or_messages, with_system
from rgtg.parquet import UNREADABLE
from rgtg.passed_through import Column, as_type, common_type
from rgtg.schemas import COMPLETION_COLUMNS, MESSAGES, PROMPT_COLUMNS, prompts_schema

STAGE = "prompts"
FILE_ROWS = 100_000
LOOKED_FILES, LOOKED_ROWS = 3, 256


def run(config: Config) -> RunDirectory:
    """The stage alone, as a command."""
    job = JobContext.open(config, models=False, prompts=True)
    run_stage(job)
    summary.write(job.directory)
    return job.directory


def run_stage(job: JobContext) -> None:
    """Read `generate.prompts` into prompts/. Raises UserError where there is no prompt, or one id on two prompts."""
    config, directory = job.config, job.directory
    begun = time.monotonic()
    files = job.digests.files(config.generate.prompts)
    free = not directory.has_begun("generate") or (config.generate.incremental and _grew(directory, files))
    target = directory.path("prompts")
    if directory.begin(STAGE, {"generate.prompts": files}, rerunnable=free) == "done":
        check_errors(config, directory.counts(STAGE), target)
        return
    counts = take_in(job.digests.found(config.generate.prompts), target, config.generate.max_error_rate)
    if not counts["rows"]:
        raise UserError(f"there is no prompt at {', '.join(map(repr, config.generate.prompts))}")
    directory.finish(STAGE, counts, time.monotonic() - begun)
    log.info(
        f"prompts: {counts['rows']} rows ({counts['errors']} with an error, {counts['duplicates']} duplicates dropped)"
        f"{lines(counts['skipped_files'])}"
    )
    check_errors(config, counts, target)


def _grew(directory: RunDirectory, files: list[dict[str, Any]]) -> bool:
    """Whether every file that was read before is still there, unchanged."""
    before = directory.inputs_of(STAGE).get("generate.prompts", [])
    return all(file in files for file in before)


def take_in(found: Found, target: str, max_error_rate: float) -> dict[str, Any]:
    """Read all files found, write the table of prompts to `target` and return the counts.

    Raises UserError where a larger fraction of the files than `max_error_rate` cannot be read.
    """
    files, unreadable = [], {}
    for file in found.files:
        try:
            files.append(_of_file(file, read_rows(file)))
        except Unreadable as error:
            unreadable[file.path] = str(error)
    found = found.without(unreadable)
    check_share(len(files), found, max_error_rate, "generate.prompts")
    schema = prompts_schema(_prompt_type(files), _passed_through(files))
    identified, num_duplicates = _identified(files, schema.field("prompt").type)
    storage.remove(target)
    storage.make_directory(target)
    table = pa.concat_tables(_table(file, rows, schema) for file, rows in zip(files, identified, strict=True))
    for number, start in enumerate(range(0, max(1, table.num_rows), FILE_ROWS)):
        table_files.write_table(storage.join(target, f"part-{number:05d}.parquet"), table.slice(start, FILE_ROWS))
    reasons = Reasons()
    reasons.add(table["error"].drop_null().to_pylist())
    return {
        "files": len(files),
        "skipped_files": found.skipped,
        "rows": table.num_rows,
        "errors": table.num_rows - table["error"].null_count,
        "duplicates": num_duplicates,
        "error_reasons": reasons.most_common(),
    }


@dataclass
class _File:
    path: str
    rows: list[Row]  # with `prompt`, and with `prompt_id` and `error` if there is one
    others: dict[str, Column]  # the passed-through columns, as long as `rows`; null in unreadable rows


class Looked(NamedTuple):
    """What the first rows of the files hold."""

    rows: int
    errors: dict[str, int]  # by kind
    messages: bool  # in place of text

    def __str__(self) -> str:
        usable = self.rows - sum(self.errors.values())
        kinds = "".join(f"; {times} times {reason!r}" for reason, times in self.errors.items())
        return f"{usable} of the first {self.rows} rows are prompts{kinds}"


def look(files: list[InputFile]) -> Looked:
    """Read the first rows of the first files that can be read. Raises UserError where none is a prompt."""
    read = []
    for file in files[:LOOKED_FILES]:
        with suppress(Unreadable):
            read.append(_of_file(file, first_rows(file, LOOKED_ROWS)))
    kind = _prompt_type(read)
    reasons = Reasons()
    reasons.add(row["error"] for of in read for row in (_checked(row, kind) for row in of.rows) if row["error"])
    looked = Looked(sum(len(of.rows) for of in read), reasons.most_common(), kind == MESSAGES)
    if looked.rows and looked.rows == sum(looked.errors.values()):
        raise UserError(str(looked))
    return looked


def _of_file(file: InputFile, raw: RawRows) -> _File:
    """Rows of a file with its other columns. Raises UserError for a file without prompts."""
    if not raw.is_json and "prompt" not in raw.table.column_names:
        raise UserError(f"{file.path!r} has no column 'prompt'; its columns are {', '.join(raw.table.column_names)}")
    read = raw.rows((*PROMPT_COLUMNS, *SYSTEMS))
    rows = [_given(row, f"{raw.unit} {number}", file.path) for number, row in zip(raw.numbers, read, strict=True)]
    if raw.is_json:
        names = dict.fromkeys(name for row in rows for name in row if name not in PROMPT_COLUMNS)
        others: dict[str, Column] = {name: [row.get(name) for row in rows] for name in names}
    else:
        readable = pa.array([None if isinstance(row, str) else i for i, row in enumerate(read)], pa.int64())
        others = {
            name: raw.table[name].take(readable) for name in raw.table.column_names if name not in PROMPT_COLUMNS
        }
    partitions = {name: [value] * len(rows) for name, value in file.partitions.items() if name not in PROMPT_COLUMNS}
    return _File(file.path, rows, {**partitions, **others})


def _given(row: Row | str, name: str, path: str) -> Row:
    """A row as the user gave it. Raises UserError where it has an `error`, a column that is set here."""
    if isinstance(row, str):
        return {"prompt": None, "error": f"{name} is {row}"}
    if row.get("error") is not None:
        raise UserError(f"{path!r} has a column 'error', which completions/ also has; rename it")
    if "prompt" not in row:
        return {**row, "prompt": None, "error": f"{name} has no 'prompt'"}
    try:
        prompt = with_system(text_or_messages(row["prompt"], "the prompt"), system_of(row))
    except Unusable as reason:  # `check_prompt` says where in the messages
        return {**row, "prompt": None, "error": check_prompt(row["prompt"]) or str(reason)}
    return {**row, "prompt": prompt}


def _identified(files: list[_File], prompt_type: pa.DataType) -> tuple[list[list[Row | None]], int]:
    """The rows of each file with their ids, None in place of a duplicate, and the number of duplicates.

    Raises UserError where two prompts have one id.
    """
    rows = [[_checked(row, prompt_type) for row in file.rows] for file in files]
    kept: list[list[Row | None]] = [list(of_file) for of_file in rows]
    digests: dict[str, bytes] = {}
    num_duplicates = 0
    for f, i, row in _each(rows):
        if row["error"] is not None:
            continue
        digest = hashlib.sha256(repr(row["prompt"]).encode(errors="surrogatepass")).digest()[:16]
        before = digests.setdefault(row["prompt_id"], digest)
        if before is not digest:
            if before != digest:
                raise UserError(
                    f"the prompt_id {row['prompt_id']!r} stands for two different prompts (the second is row "
                    f"{i + 1} of {files[f].path!r}); make the ids unique"
                )
            num_duplicates += 1
            kept[f][i] = None
    # A bad row keeps its id unless another row has it. Bad rows are never duplicates of each other.
    taken = set(digests)
    for f, i, row in _each(rows):
        if row["error"] is None:
            continue
        given = row["prompt_id"]
        if given in taken:
            row["error"] += f" (its prompt_id {given!r} is another row's too)"
        if given is None or given in taken:
            row["prompt_id"] = hashlib.sha256(f"{files[f].path}:{i}".encode()).hexdigest()
        taken.add(row["prompt_id"])
    return kept, num_duplicates


def _each(rows: list[list[Row]]) -> Iterator[tuple[int, int, Row]]:
    return ((f, i, row) for f, of_file in enumerate(rows) for i, row in enumerate(of_file))


def _checked(row: Row, prompt_type: pa.DataType) -> Row:
    """The prompt, id and error of a row. A bad row has an error and no prompt, and maybe no id."""
    prompt, given = row["prompt"], row.get("prompt_id")
    reason = row.get("error") or check_prompt(prompt)
    if given is not None and not is_unicode(str(given)):
        reason, given = reason or "the prompt_id is not valid Unicode (it holds a lone surrogate)", None
    given = None if given is None else str(given)
    if reason:
        return {"prompt_id": given, "prompt": None, "error": reason}
    if prompt_type == MESSAGES:
        prompt = [{"role": message["role"], "content": message["content"]} for message in prompt]
    return {"prompt_id": prompt_id(prompt) if given is None else given, "prompt": prompt, "error": None}


def _prompt_type(files: list[_File]) -> pa.DataType:
    """The type of the prompts, text or messages. Raises UserError for a mixture: one column cannot hold both."""
    first: dict[bool, str] = {}
    for file in files:
        for number, row in enumerate(file.rows, 1):
            if check_prompt(row["prompt"]) is None:
                first.setdefault(isinstance(row["prompt"], list), f"row {number} of {file.path!r}")
    if len(first) == 2:
        raise UserError(
            f"a run takes one kind of prompts, and {first[False]} is text, {first[True]} is messages; "
            'write text as [{"role": "user", "content": ...}], or start two runs'
        )
    return MESSAGES if True in first else pa.string()


def _passed_through(files: list[_File]) -> list[pa.Field]:
    """The fields of all passed-through columns."""
    names = dict.fromkeys(name for file in files for name in file.others)
    for name in names:
        if name in COMPLETION_COLUMNS:
            raise UserError(f"the prompts have a column {name!r}, which completions/ also has; rename it")
        if not is_unicode(name):
            raise UserError(f"the prompts have a column {name!r}, whose name is not valid Unicode; rename it")
    return [
        pa.field(name, common_type([file.others[name] for file in files if name in file.others])) for name in names
    ]


def _table(file: _File, rows: list[Row | None], schema: pa.Schema) -> pa.Table:
    """The kept rows of a file, with their passed-through columns."""
    kept = [i for i, row in enumerate(rows) if row is not None]
    columns = []
    for field in schema:
        if field.name in PROMPT_COLUMNS:
            columns.append(pa.array([row[field.name] for row in rows if row is not None], field.type))
        elif field.name in file.others:
            columns.append(_others(file, field).take(pa.array(kept, pa.int64())))
        else:
            columns.append(pa.nulls(len(kept), field.type))
    return pa.table(columns, schema=schema)


def _others(file: _File, field: pa.Field) -> pa.Array | pa.ChunkedArray:
    """A passed-through column in its common type. Raises UserError for values that cannot become text."""
    try:
        return as_type(file.others[field.name], field.type)
    except UNREADABLE as error:
        raise UserError(
            f"the column {field.name!r} of {file.path!r} has another type in another file and cannot be converted to "
            f"text ({first_line(error)}); remove it, or give both files one type"
        ) from error


if __name__ == "__main__":
    from pipelines.runtime.launch import main

    main(run)
