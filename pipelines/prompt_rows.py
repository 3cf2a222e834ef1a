"""Rows of prompt files: each as a prompt with its id, or with the reason why it is none, and its other columns."""

import hashlib
from dataclasses import dataclass

import pyarrow as pa

from rgtg.chat import check_prompt, prompt_id
from rgtg.errors import UserError
from rgtg.input_files import InputFile, RawRows, Unreadable, read_rows
from rgtg.input_rows import Row, is_unicode
from rgtg.messages import SYSTEMS, Unusable, system_of, text_or_messages, with_system
from rgtg.passed_through import Column
from rgtg.schemas import PROMPT_COLUMNS


@dataclass
class PromptRows:
    """Rows of one file. A bad one has an error and no prompt, and maybe no id."""

    path: str
    rows: list[Row]  # prompt_id, prompt and error
    others: dict[str, Column]  # the columns that pass through, as long as `rows`; null in unreadable rows


def prompt_rows(file: InputFile, raw: RawRows) -> PromptRows:
    """Rows of a file with its other columns. Raises UserError for a file without prompts."""
    if not raw.is_json and "prompt" not in raw.table.column_names:
        raise UserError(f"{file.path!r} has no column 'prompt'; its columns are {', '.join(raw.table.column_names)}")
    read = raw.rows((*PROMPT_COLUMNS, *SYSTEMS))
    given = [_given(row, f"{raw.unit} {number}", file.path) for number, row in zip(raw.numbers, read, strict=True)]
    if raw.is_json:
        names = dict.fromkeys(name for row in given for name in row if name not in PROMPT_COLUMNS)
        others: dict[str, Column] = {name: [row.get(name) for row in given] for name in names}
    else:
        readable = pa.array([None if isinstance(row, str) else i for i, row in enumerate(read)], pa.int64())
        others = {
            name: raw.table[name].take(readable) for name in raw.table.column_names if name not in PROMPT_COLUMNS
        }
    partitions = {name: [value] * len(given) for name, value in file.partitions.items() if name not in PROMPT_COLUMNS}
    return PromptRows(file.path, [_checked(row) for row in given], {**partitions, **others})


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


def _checked(row: Row) -> Row:
    """The prompt, id and error of a row. A bad row has an error and no prompt, and maybe no id."""
    prompt, given = row["prompt"], row.get("prompt_id")
    reason = row.get("error") or check_prompt(prompt)
    if given is not None and not is_unicode(str(given)):
        reason, given = reason or "the prompt_id is not valid Unicode (it holds a lone surrogate)", None
    given = None if given is None else str(given)
    if reason:
        return {"prompt_id": given, "prompt": None, "error": reason}
    if isinstance(prompt, list):
        prompt = [{"role": message["role"], "content": message["content"]} for message in prompt]
    return {"prompt_id": prompt_id(prompt) if given is None else given, "prompt": prompt, "error": None}


def read_prompts(file: InputFile) -> PromptRows:
    """All rows of a file. Raises Unreadable for a broken one, UserError for one without prompts."""
    return prompt_rows(file, read_rows(file))


def read_again(file: InputFile) -> PromptRows:
    """A file that was read before. Raises UserError where it cannot be read any more."""
    try:
        return read_prompts(file)
    except Unreadable as error:
        raise UserError(f"{file.path!r} changed while the prompts were read: {error}") from error


def content_of(prompt: object) -> bytes:
    """16 bytes that tell what a prompt says, whatever its id."""
    return hashlib.sha256(repr(prompt).encode(errors="surrogatepass")).digest()[:16]
