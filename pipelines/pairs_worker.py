"""The workers of `pairs`: raw rows of files in chunks, and chunks to token ids."""

from collections.abc import Iterator
from datetime import date
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from rgtg.errors import UserError
from rgtg.input_files import InputFile, RawRows, Unreadable, read_batches
from rgtg.models.loading import load_tokenizer
from rgtg.preferences.readers import PAIR_COLUMNS, Pair, read_pair
from rgtg.preferences.selection import fraction
from rgtg.preferences.tokenized import TokenizedPair, tokenize_pair

BATCH_ROWS = 256  # raw rows per chunk

IDS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    [
        ("split", pa.string()),  # train, eval or unused
        ("prompt_ids", IDS),
        ("chosen_ids", IDS),
        ("rejected_ids", IDS),
        ("common", pa.int32()),
        ("guessed", pa.bool_()),  # the prompt is the common beginning of both sides
        # Of an unused pair: why, and where it stands.
        ("reason", pa.string()),
        ("path", pa.string()),
        ("row", pa.int64()),  # from 1; of JSON the line
        ("text", pa.string()),  # its beginning
    ]
)


class Tokenize(NamedTuple):
    """How pairs become token ids."""

    init: str
    trust_remote_code: bool
    max_length: int
    overlong: Literal["truncate", "drop"]
    day: date
    by_prompt: bool = True  # what is held out


def chunks(files: pa.Table) -> Iterator[pa.Table]:
    """The raw rows of files in chunks, each as bytes of an Arrow stream, since files differ in their columns."""
    for row in files.to_pylist():
        for raw in raw_rows(InputFile(row["uri"], row["path"], 0)):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, raw.table.schema) as stream:
                stream.write_table(raw.table)
            of_file = {name: [row[name]] for name in ("path", "eval_fraction")}
            of_chunk = {"is_json": [raw.is_json], "before": [raw.before]}
            data = pa.array([sink.getvalue().to_pybytes()], pa.large_binary())
            yield pa.table({"rows": data, **of_chunk, **of_file})


def raw_rows(file: InputFile) -> Iterator[RawRows]:
    try:
        yield from read_batches(file, PAIR_COLUMNS, BATCH_ROWS)
    except Unreadable as error:
        raise UserError(f"{file.path!r} changed while the pairs were read: {error}") from error


def tokenized(of: pa.Table, tokenize: Tokenize) -> pa.Table:
    """Tokenize chunks of raw rows into rows of pairs/."""
    rows = []
    for chunk in of.to_pylist():
        raw = RawRows(pa.ipc.open_stream(chunk["rows"]).read_all(), chunk["is_json"], chunk["before"])
        rows += rows_of(raw, chunk["path"], chunk["eval_fraction"], tokenize)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def rows_of(raw: RawRows, path: str, eval_fraction: float, tokenize: Tokenize) -> list[dict[str, Any]]:
    """The rows of pairs/ for raw rows of the file at `path`."""
    rows = []
    for i, (number, (pair, result)) in enumerate(zip(raw.numbers, read(raw, tokenize), strict=True)):
        if isinstance(pair, Pair) and isinstance(result, TokenizedPair):
            rows.append(_row(result, eval_fraction, tokenize.by_prompt) | {"guessed": pair.guessed})
        else:
            rows.append({"split": "unused", "reason": result, "path": path, "row": number, "text": raw.shown(i)})
    return rows


def read(raw: RawRows, tokenize: Tokenize) -> Iterator[tuple[Pair | str, TokenizedPair | str]]:
    """Each raw row as a pair and as token ids, or the reason why it is none. Raises UserError as `tokenize_pair`."""
    if tokenize.init not in _tokenizers:
        _tokenizers[tokenize.init] = load_tokenizer(
            tokenize.init, "train_reward.init", trust_remote_code=tokenize.trust_remote_code
        )
    tokenizer = _tokenizers[tokenize.init]
    for row in raw.rows():
        pair = f"the {raw.unit} is {row}" if isinstance(row, str) else read_pair(row)
        if isinstance(pair, str):
            yield pair, pair
        else:
            yield pair, tokenize_pair(tokenizer, pair, tokenize.max_length, tokenize.overlong, tokenize.day)


_tokenizers: dict[str, Any] = {}  # by path; each worker process loads one once


def _row(result: TokenizedPair, eval_fraction: float, by_prompt: bool) -> dict[str, Any]:
    # By prompt where there is one: a prompt on both sides of the split would inflate the accuracy.
    alone = by_prompt and len(result.prompt_ids) > 1
    key = result.prompt_ids if alone else result.prompt_ids + result.chosen_ids
    return {
        "split": "eval" if fraction(repr(key)) < eval_fraction else "train",
        "prompt_ids": result.prompt_ids,
        "chosen_ids": result.chosen_ids,
        "rejected_ids": result.rejected_ids,
        "common": result.common,
    }
