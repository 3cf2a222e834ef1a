"""Take prompts in, once, into the run's own prompts/: checked, identified, each one kept once. Needs no Ray.

Every input format ends here. Rows that cannot be prompts stay, with the reason in `error`; files that cannot be read
are skipped and named.
"""

import hashlib
import io
import json
import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.inputs import resolved
from pipelines.run_directory import RunDirectory, listing
from rgtg import object_store, storage
from rgtg.chat import check_prompt, prompt_id
from rgtg.config import Config
from rgtg.errors import UserError, first_line
from rgtg.rows import SUFFIXES, UNREADABLE, Row, is_unicode, json_rows, parquet_fault, table_rows
from rgtg.tables import COMPLETION_COLUMNS, MESSAGES, PROMPT_COLUMNS, prompts_schema

STAGE = "prompts"
FILE_ROWS = 100_000


def run(config: Config) -> RunDirectory:
    """The stage: `generate.prompts` to prompts/. Raises UserError where nothing can be read or two ids clash."""
    config = resolved(config, models=False, prompts=True)
    directory = RunDirectory(config)
    begun = time.monotonic()
    files = listing(config.generate.prompts, SUFFIXES)
    free = not directory.has_begun("generate") or (config.generate.incremental and _grew(directory, files))
    if directory.begin(STAGE, {"generate.prompts": files}, rerunnable=free) == "done":
        return directory
    counts = take_in(config.generate.prompts, directory.path("prompts"))
    directory.finish(STAGE, counts, time.monotonic() - begun)
    skipped = "".join(f"\n  skipped {name}: {reason}" for name, reason in counts["skipped_files"].items())
    print(
        f"prompts: {counts['rows']} rows ({counts['errors']} marked bad, {counts['duplicates']} duplicates left out)"
        f"{skipped}",
        flush=True,
    )
    return directory


def _grew(directory: RunDirectory, files: list[dict[str, Any]]) -> bool:
    """Whether every file that was taken in is still there as it was."""
    before = directory.manifest["stages"].get(STAGE, {}).get("inputs", {}).get("generate.prompts", [])
    return all(file in files for file in before)


def take_in(places: list[str], target: str) -> dict[str, Any]:
    """Read all files at `places` and write the table of prompts at `target`; the counts of what was met."""
    skipped: dict[str, str] = {}
    tables = {}
    for place in places:
        skipped |= storage.passed_over(place, SUFFIXES)
        for file in storage.list_files(place, SUFFIXES):
            name = file.path
            try:
                tables[name] = _read(place, name)
            except _Unreadable as error:
                skipped[name] = str(error)
    if not tables:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise UserError(f"none of the files of generate.prompts can be read ({reasons})")
    prompt_type = _prompt_type(tables)
    passed_through = _passed_through(tables)
    schema = prompts_schema(prompt_type, passed_through)
    num_rows = num_errors = num_duplicates = 0
    seen: dict[str, bytes] = {}
    kept: list[Row] = []
    storage.remove(target)
    storage.make_directory(target)
    num_files = 0
    for name, rows in tables.items():
        for number, row in enumerate(rows):
            row = _identified(row, name, number, prompt_type)
            digest = hashlib.sha256(
                repr((row["prompt"], row["error"] is None)).encode(errors="surrogatepass")
            ).digest()[:16]
            before = seen.get(row["prompt_id"])
            if before is not None and before != digest:
                raise UserError(
                    f"the prompt_id {row['prompt_id']!r} stands for two different prompts (the second is row "
                    f"{number + 1} of {name!r}); ids must be unique"
                )
            if before is not None:
                num_duplicates += 1
                continue
            seen[row["prompt_id"]] = digest
            num_rows += 1
            num_errors += row["error"] is not None
            kept.append(row)
            if len(kept) == FILE_ROWS:
                _write(kept, schema, target, num_files)
                kept, num_files = [], num_files + 1
    if kept or not num_files:
        _write(kept, schema, target, num_files)
    return {
        "files": len(tables),
        "skipped_files": skipped,
        "rows": num_rows,
        "errors": num_errors,
        "duplicates": num_duplicates,
    }


class _Unreadable(Exception):
    """Why a file is skipped."""


def _read(place: str, path: str) -> list[Row]:
    """All rows of a file. Raises _Unreadable for one that is broken, UserError for one without prompts.

    A store that does not give the file is no reason to go on without it.
    """
    filesystem, _ = storage.resolve(place)

    def whole() -> bytes:
        with filesystem.open_input_file(path) as file:
            return file.read()

    try:
        data = object_store.patiently(whole)
    except OSError as error:
        if failure := object_store.failure_of_store(f"cannot read {path!r}", str(error)):
            raise failure from None
        raise _Unreadable(first_line(error)) from error
    if not data:
        raise _Unreadable("the file is empty")
    if path.endswith(".parquet"):
        if fault := parquet_fault(pa.BufferReader(data)):
            raise _Unreadable(fault)
        table = pq.read_table(pa.BufferReader(data))
        if "prompt" not in table.column_names:
            raise UserError(f"{path!r} has no column 'prompt'; its columns are {', '.join(table.column_names)}")
        return [
            {"prompt": None, "error": f"row {number} is {row}"} if isinstance(row, str) else _given(row, path)
            for number, row in enumerate(table_rows(table), 1)
        ]
    rows: list[Row] = []
    for number, row in json_rows(data):
        if isinstance(row, str):
            rows.append({"prompt": None, "error": f"line {number} is {row}"})
        elif "prompt" not in row:
            rows.append({"prompt": None, **_given(row, path), "error": f"line {number} has no 'prompt'"})
        else:
            rows.append(_given(row, path))
    return rows


def _given(row: Row, path: str) -> Row:
    """A row as the user gave it: what is wrong with it is for us to say, in a column of that name."""
    if row.get("error") is not None:
        raise UserError(f"{path!r} has a column 'error', which completions/ uses itself; rename it")
    return row


def _identified(row: Row, file: str, number: int, prompt_type: pa.DataType) -> Row:
    """The row with its id, and with `error` set and `prompt` null where that is none."""
    prompt, given = row["prompt"], row.get("prompt_id")
    reason = row.get("error") or check_prompt(prompt)
    if given is not None and not is_unicode(str(given)):
        reason, given = reason or "the prompt_id is not valid Unicode (it holds a lone surrogate)", None
    if reason:
        prompt = None
        fallback = hashlib.sha256(f"{file}:{number}".encode()).hexdigest()
    else:
        if prompt_type == MESSAGES:
            prompt = [{"role": message["role"], "content": message["content"]} for message in prompt]
        fallback = prompt_id(prompt)
    return {**row, "prompt_id": fallback if given is None else str(given), "prompt": prompt, "error": reason}


def _prompt_type(tables: dict[str, list[Row]]) -> pa.DataType:
    """Text or messages. Raises UserError for a mixture: one column cannot hold both."""
    first: dict[bool, str] = {}
    for name, rows in tables.items():
        for number, row in enumerate(rows):
            if check_prompt(row["prompt"]) is None:
                first.setdefault(isinstance(row["prompt"], list), f"row {number} of {name!r}")
    if len(first) == 2:
        raise UserError(
            f"a run takes one kind of prompts: {first[False]} is text, {first[True]} is messages; "
            'write text as [{"role": "user", "content": ...}], or make two runs'
        )
    return MESSAGES if True in first else pa.string()


def _passed_through(tables: dict[str, list[Row]]) -> list[pa.Field]:
    """A field for every other column, of a type that holds its values in all files; JSON text where none does."""
    values: dict[str, list] = {}
    for rows in tables.values():
        for row in rows:
            for name, value in row.items():
                if name in COMPLETION_COLUMNS and name not in PROMPT_COLUMNS:
                    raise UserError(f"the prompts have a column {name!r}, which completions/ uses itself; rename it")
                if name not in PROMPT_COLUMNS:
                    values.setdefault(name, []).append(value)
    for name in values:
        if not is_unicode(name):
            raise UserError(f"the prompts have a column {name!r}, whose name is not valid Unicode; rename it")
    return [pa.field(name, _kind(column)) for name, column in values.items()]


def _kind(column: list) -> pa.DataType:
    """The type that holds these values in a Parquet file, or text."""
    try:
        kind = pa.array(column).type
        # Arrow has types that Parquet has not, such as objects without members or ones nested a hundredfold.
        trial = io.BytesIO()
        pq.write_table(pa.table([pa.array([], kind)], ["values"]), trial)
        pq.read_schema(trial)
    except UNREADABLE:
        return pa.string()
    # A column of nulls alone has a type that later files could not agree with.
    return pa.string() if pa.types.is_null(kind) else kind


def _write(rows: list[Row], schema: pa.Schema, target: str, number: int) -> None:
    columns = [pa.array([_fitting(row.get(field.name), field.type) for row in rows], field.type) for field in schema]
    storage.write_table(storage.join(target, f"part-{number:05d}.parquet"), pa.table(columns, schema=schema))


def _fitting(value: Any, kind: pa.DataType) -> Any:
    """A value as its column holds it; JSON text where that is text and the value is no text that can be stored."""
    if value is None or not pa.types.is_string(kind) or (isinstance(value, str) and is_unicode(value)):
        return value
    return json.dumps(value, default=str)


if __name__ == "__main__":
    from pipelines.cli import main

    main(run)
