"""Take preference pairs in, once, into the run's own pairs/: read in any format, tokenised, split and shuffled.

A Ray Data job, since tokenising a million pairs takes a while. Pairs that cannot be used stay in the table, with the
reason, so that each one can be looked up; training reads the others, epoch after epoch.
"""

import hashlib
import json
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from pipelines import ray_session
from pipelines.run_directory import RunDirectory, listing
from rgtg import object_store, storage
from rgtg.config import Config
from rgtg.errors import UserError, first_line
from rgtg.models.loading import context_length, load_config, load_tokenizer
from rgtg.preferences.readers import PAIR_COLUMNS, read_pair
from rgtg.preferences.selection import fraction
from rgtg.preferences.tokenized import TokenizedPair, tokenize_pair
from rgtg.rows import SUFFIXES, UNREADABLE, json_rows, parquet_fault, table_rows

STAGE = "pairs"
BATCH_ROWS = 256
JSON_ROW = "json"  # the one column of what came from JSON, until it is read as pairs

IDS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    [
        ("split", pa.string()),  # train, eval or unused
        ("reason", pa.string()),  # why it is unused
        ("prompt_ids", IDS),
        ("chosen_ids", IDS),
        ("rejected_ids", IDS),
        ("common", pa.int32()),
    ]
)


def run(config: Config, directory: RunDirectory, init: str) -> None:
    """The stage: train_reward.pairs (and eval_pairs) to pairs/, tokenised for the model at `init`."""
    settings = config.train_reward
    sources = {"pairs": settings.pairs, "eval_pairs": settings.eval_pairs}
    inputs: dict[str, Any] = {
        f"train_reward.{name}": places and listing(places, SUFFIXES) for name, places in sources.items()
    }
    context = context_length(load_config(init, "train_reward.init", trust_remote_code=config.models.trust_remote_code))
    max_length = min(settings.max_length, context)
    inputs |= {f"train_reward.{name}": getattr(settings, name) for name in ("overlong", "eval_fraction")}
    inputs |= {"train_reward.max_length": max_length, "run.seed": config.run.seed}
    inputs |= {"tokenizer": _tokenizer_digest(init, config)}
    trained = directory.has_begun("train_reward")
    if directory.begin(STAGE, inputs, rerunnable=not trained) == "done":
        return
    begun = time.monotonic()
    ray_session.start(config)
    if max_length < settings.max_length:
        print(f"pairs: of at most {max_length} tokens, the context of the model that training starts from", flush=True)
    target = directory.path("pairs")
    storage.remove(target)
    storage.make_directory(target)
    filesystem, path = storage.resolve(target)
    eval_fraction = 0.0 if settings.eval_pairs else settings.eval_fraction
    skipped: dict[str, str] = {}
    datasets = [
        dataset.map_batches(
            _tokenize,  # type: ignore[arg-type]  # Ray's own annotation leaves out Arrow tables with arguments
            fn_kwargs={
                "init": init,
                "trust_remote_code": config.models.trust_remote_code,
                "max_length": max_length,
                "overlong": settings.overlong,
                "day": directory.date,
                "eval_fraction": 1.0 if name == "eval_pairs" else eval_fraction,
            },
            batch_size=BATCH_ROWS,
            batch_format="pyarrow",
        )
        for name, places in sources.items()
        if places
        for dataset in _read(places, skipped)
    ]
    if not datasets:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise UserError(f"none of the files of train_reward.pairs can be read ({reasons})")
    every = datasets[0].union(*datasets[1:]) if len(datasets) > 1 else datasets[0]
    with ray_session.explained("reading the pairs"):
        every.random_shuffle(seed=config.run.seed).write_parquet(path, filesystem=filesystem)
    counts = count(target) | {"skipped_files": skipped}
    reasons = "".join(f"\n  skipped {name}: {reason}" for name, reason in skipped.items())
    reasons += "".join(f"\n  {n} unused: {reason}" for reason, n in counts["unused"].items())
    print(f"pairs: {counts['train']} to train on, {counts['eval']} held out{reasons}", flush=True)
    if not counts["train"] or not counts["eval"]:
        raise UserError(
            f"of the pairs at {', '.join(settings.pairs)}, {counts['train']} are left to train on and "
            f"{counts['eval']} to evaluate on; see the reasons above"
        )
    directory.finish(STAGE, counts, time.monotonic() - begun)


def count(target: str) -> dict[str, Any]:
    """Pairs to train on and held out, and the unused ones by reason."""
    splits: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    for table in storage.read_tables(target, ["split", "reason"]):
        splits.update(table["split"].to_pylist())
        unused.update(reason for reason in table["reason"].to_pylist() if reason)
    return {"train": splits["train"], "eval": splits["eval"], "unused": dict(unused.most_common())}


def to_pairs(batch: dict[str, Any]) -> list[TokenizedPair]:
    """Rows of pairs/ as Ray Data gives them."""
    return [
        TokenizedPair(prompt.tolist(), chosen.tolist(), rejected.tolist(), int(common))
        for prompt, chosen, rejected, common in zip(
            batch["prompt_ids"], batch["chosen_ids"], batch["rejected_ids"], batch["common"], strict=True
        )
    ]


def _read(places: list[str], skipped: dict[str, str]) -> list["ray.data.Dataset"]:
    """The rows of all files as they are, in a dataset for each schema; files that cannot be read go to `skipped`."""
    groups: defaultdict[Any, list[str]] = defaultdict(list)  # paths, by the kind of store and what a file holds
    filesystems = {}
    for place in places:
        filesystem, _ = storage.resolve(place)
        skipped |= storage.passed_over(place, SUFFIXES)
        paths = [file.path for file in storage.list_files(place, SUFFIXES)]
        with ThreadPoolExecutor(storage.READERS) as pool:
            columns = pool.map(partial(_columns, filesystem), paths)
        for path, found in zip(paths, columns, strict=True):
            if isinstance(found, str):
                skipped[path] = found
            else:
                filesystems[filesystem.type_name] = filesystem
                groups[filesystem.type_name, found].append(path)
    datasets = []
    for (store, columns), paths in groups.items():
        if columns:
            names = [field.name for field in columns]
            datasets.append(ray.data.read_parquet(paths, filesystem=filesystems[store], columns=names))
        else:
            files = ray.data.read_binary_files(paths, filesystem=filesystems[store])
            datasets.append(files.map_batches(_lines, batch_size=1, batch_format="pyarrow"))
    return datasets


def _columns(filesystem: Any, path: str) -> tuple[pa.Field, ...] | str:
    """The columns that make a pair in a Parquet file, none for JSON, or why it cannot be read. Raises UserError where
    it holds no pairs.
    """
    if not path.endswith(".parquet"):
        return ()
    try:
        schema = object_store.patiently(lambda: pq.read_schema(path, filesystem=filesystem))
        names = [name for name in schema.names if name in PAIR_COLUMNS]
        fault = parquet_fault(path, filesystem, names)
    except UNREADABLE as error:
        fault = f"not a readable Parquet file ({first_line(error)})"
    if fault:
        if failure := object_store.failure_of_store(f"cannot read {path!r}", fault):
            raise failure
        return fault
    if not PAIR_COLUMNS.intersection(schema.names):
        raise UserError(
            f"{path!r} holds no preference pairs: its columns are {', '.join(sorted(schema.names))}, and the known "
            "formats use chosen and rejected, or completions with scores"
        )
    return tuple(field for field in schema.remove_metadata() if field.name in PAIR_COLUMNS)


def _lines(files: pa.Table) -> pa.Table:
    """Files of JSON as rows: JSON text again, since rows may differ in their columns."""
    rows = [row for data in files["bytes"].to_pylist() for _, row in json_rows(data)]
    return pa.table({JSON_ROW: pa.array([json.dumps(row) for row in rows], pa.large_string())})


_tokenizers: dict[str, Any] = {}  # of this worker process, by place: a task is called for every batch


def _tokenize(
    batch: pa.Table,
    init: str,
    trust_remote_code: bool,
    max_length: int,
    overlong: Any,
    day: date,
    eval_fraction: float,
) -> pa.Table:
    """A batch of raw rows (or of lines of JSON) as rows of pairs/."""
    if init not in _tokenizers:
        _tokenizers[init] = load_tokenizer(init, "train_reward.init", trust_remote_code=trust_remote_code)
    tokenizer = _tokenizers[init]
    if batch.column_names == [JSON_ROW]:
        kind, rows = "line", [json.loads(text) for text in batch[JSON_ROW].to_pylist()]
    else:
        kind, rows = "row", table_rows(batch)
    results = []
    for row in rows:
        pair = f"the {kind} is {row}" if isinstance(row, str) else read_pair(row)
        results.append(pair if isinstance(pair, str) else tokenize_pair(tokenizer, pair, max_length, overlong, day))
    return pa.Table.from_pylist([_row(result, eval_fraction) for result in results], schema=SCHEMA)


def _row(result: TokenizedPair | str, eval_fraction: float) -> dict[str, Any]:
    if isinstance(result, str):
        return {"split": "unused", "reason": result}
    # By prompt where there is one: the same prompt on both sides of the split would flatter the figures.
    key = result.prompt_ids if len(result.prompt_ids) > 1 else result.prompt_ids + result.chosen_ids
    return {
        "split": "eval" if fraction(repr(key)) < eval_fraction else "train",
        "prompt_ids": result.prompt_ids,
        "chosen_ids": result.chosen_ids,
        "rejected_ids": result.rejected_ids,
        "common": result.common,
    }


def _tokenizer_digest(init: str, config: Config) -> str:
    tokenizer = load_tokenizer(init, "train_reward.init", trust_remote_code=config.models.trust_remote_code)
    vocabulary = repr(sorted(tokenizer.get_vocab().items())) + repr(tokenizer.chat_template)
    return hashlib.sha256(vocabulary.encode()).hexdigest()
