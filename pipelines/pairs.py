"""The first stage of training: preference pairs of any format, tokenized, split and shuffled into the run's pairs/.

It runs on Ray Data, since tokenizing a million pairs takes a while. Unusable pairs stay in the table with the reason,
so that each can be looked up; training reads the others in every epoch.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext

from pipelines.runtime import ray_session
from pipelines.runtime.job_context import JobContext
from pipelines.runtime.job_log import log
from rgtg import storage, table_files
from rgtg.config import Config
from rgtg.errors import UserError, printable
from rgtg.input_files import Found, InputFile, RawRows, Unreadable, check_rows, check_share, lines, read_batches
from rgtg.models.loading import context_length, load_config, load_tokenizer
from rgtg.preferences.readers import PAIR_COLUMNS, read_pair
from rgtg.preferences.selection import fraction
from rgtg.preferences.tokenized import TokenizedPair, tokenize_pair

STAGE = "pairs"
BATCH_ROWS = 256  # raw rows per chunk
BLOCK_CHUNKS = 16  # chunks per tokenizing task
MOST_BLOCKS = 256  # tasks that read files
MOST_REASONS = 50  # that the log and the manifest tell apart; some name what a file calls its fields

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


def run_stage(job: JobContext, init: str) -> None:
    """Tokenize `train_reward.pairs` (and `eval_pairs`) for the model at `init`, into pairs/."""
    config, directory, settings = job.config, job.directory, job.config.train_reward
    sources = {"pairs": settings.pairs, "eval_pairs": settings.eval_pairs}
    inputs: dict[str, Any] = {
        f"train_reward.{name}": uris and job.digests.files(uris) for name, uris in sources.items()
    }
    fractions = {"pairs": 0.0 if settings.eval_pairs else settings.eval_fraction, "eval_pairs": 1.0}
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
        log.info(f"pairs: train_reward.max_length is lowered to {max_length} tokens, the context of the model")
    target = directory.path("pairs")
    storage.remove(target)
    storage.make_directory(target)
    found = {name: _readable(job.digests.found(uris)) for name, uris in sources.items() if uris}
    skipped = {path: reason for of in found.values() for path, reason in of.skipped.items()}
    files = [
        {"uri": file.uri, "path": file.path, "eval_fraction": fractions[name]}
        for name, of in found.items()
        for file in of.files
    ]
    for name, of in found.items():
        check_share(len(of.files), of, config.generate.max_error_rate, f"train_reward.{name}")
    tokenize = {
        "init": init,
        "trust_remote_code": config.models.trust_remote_code,
        "max_length": max_length,
        "overlong": settings.overlong,
        "day": directory.date,
    }
    with ray_session.translate_ray_errors("reading the pairs"):
        _write(files, tokenize, config.run.seed, target)
        counts = count(target)
        if (
            not settings.eval_pairs
            and counts["train"] + counts["eval"] > 1
            and not (counts["train"] and counts["eval"])
        ):
            log.info(
                "pairs: there are too few prompts to hold some of them out, so pairs are held out: their prompts are "
                "trained on too, and the accuracy says less about new prompts"
            )
            storage.remove(target)
            storage.make_directory(target)
            _write(files, tokenize | {"by_prompt": False}, config.run.seed, target)
            counts = count(target)
    counts |= {"skipped_files": skipped}
    reasons = lines(skipped)
    reasons += "".join(f"\n  {n} unused: {printable(reason)}" for reason, n in counts["unused"].items())
    log.info(f"pairs: {counts['train']} for training, {counts['eval']} held out{reasons}")
    if not counts["train"] or not counts["eval"]:
        raise UserError(
            f"of the pairs at {', '.join(settings.pairs)}, {counts['train']} are left to train on and "
            f"{counts['eval']} to evaluate on; {'see the reasons above' if reasons else 'the files hold no pairs'}"
        )
    directory.finish(STAGE, counts, time.monotonic() - begun)


def _write(files: list[dict[str, Any]], tokenize: dict[str, Any], seed: int, target: str) -> None:
    """Tokenize and shuffle all pairs of `files` into `target`."""
    filesystem, path = storage.resolve(target)
    in_order = DataContext.get_current().copy()
    in_order.execution_options.preserve_order = True  # a shuffle by seed is reproducible only of ordered rows
    with DataContext.current(in_order):
        chunks = ray.data.from_items(files, override_num_blocks=min(len(files), MOST_BLOCKS)).map_batches(
            _chunks,  # type: ignore[arg-type]  # Ray's annotation leaves out Arrow tables
            batch_size=1,
            batch_format="pyarrow",
        )
        tokenized = chunks.repartition(target_num_rows_per_block=BLOCK_CHUNKS).map_batches(
            _tokenized,  # type: ignore[arg-type]
            fn_kwargs=tokenize,
            batch_size=1,
            batch_format="pyarrow",
        )
        tokenized.random_shuffle(seed=seed).write_parquet(path, filesystem=filesystem)


def count(target: str) -> dict[str, Any]:
    """The number of training pairs, of held-out pairs, and of unused pairs by reason, the most frequent ones first."""
    splits: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    for table in table_files.read_tables(target, ["split", "reason"]):
        splits.update(table["split"].to_pylist())
        unused.update(reason for reason in table["reason"].to_pylist() if reason)
    said = dict(unused.most_common(MOST_REASONS))
    if rest := unused.total() - sum(said.values()):
        said["other reasons"] = rest
    return {"train": splits["train"], "eval": splits["eval"], "unused": said}


def to_pairs(batch: dict[str, Any]) -> list[TokenizedPair]:
    """The pairs of a batch of pairs/, as Ray Data delivers it."""
    return [
        TokenizedPair(prompt.tolist(), chosen.tolist(), rejected.tolist(), int(common))
        for prompt, chosen, rejected, common in zip(
            batch["prompt_ids"], batch["chosen_ids"], batch["rejected_ids"], batch["common"], strict=True
        )
    ]


def _readable(found: Found) -> Found:
    """The files of pairs, with those that cannot be read moved to the unreadable ones."""
    with ThreadPoolExecutor(storage.READERS) as pool:
        faults = zip(found.files, pool.map(_fault, found.files), strict=True)
        return found.without({file.path: fault for file, fault in faults if fault})


def _fault(file: InputFile) -> str | None:
    """The reason why a file cannot be read, or None. Raises UserError for a file without pairs."""
    try:
        names = check_rows(file, PAIR_COLUMNS)
    except Unreadable as error:
        return str(error)
    if names is not None and not PAIR_COLUMNS.intersection(names):
        raise UserError(
            f"{file.path!r} holds no preference pairs: its columns are {', '.join(sorted(names))}; give columns "
            "chosen and rejected, or completions with scores"
        )
    return None


def _chunks(files: pa.Table) -> Iterator[pa.Table]:
    """The raw rows of files in chunks, each as bytes of an Arrow stream, since files differ in their columns."""
    for row in files.to_pylist():
        file = InputFile(row["uri"], row["path"], 0)
        for raw in _raw(file):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, raw.table.schema) as stream:
                stream.write_table(raw.table)
            chunk = pa.array([sink.getvalue().to_pybytes()], pa.large_binary())
            yield pa.table({"rows": chunk, "is_json": [raw.is_json], "eval_fraction": [row["eval_fraction"]]})


def _raw(file: InputFile) -> Iterator[RawRows]:
    try:
        yield from read_batches(file, PAIR_COLUMNS, BATCH_ROWS)
    except Unreadable as error:
        raise UserError(f"{file.path!r} changed while the pairs were read: {error}") from error


_tokenizers: dict[str, Any] = {}  # by path; each worker process loads one once


def _tokenized(chunks: pa.Table, **options: Any) -> pa.Table:
    """Tokenize chunks of raw rows into rows of pairs/."""
    return pa.concat_tables(
        _tokenize(
            RawRows(pa.ipc.open_stream(chunk["rows"]).read_all(), chunk["is_json"]),
            eval_fraction=chunk["eval_fraction"],
            **options,
        )
        for chunk in chunks.to_pylist()
    )


def _tokenize(
    raw: RawRows,
    init: str,
    trust_remote_code: bool,
    max_length: int,
    overlong: Any,
    day: date,
    eval_fraction: float,
    by_prompt: bool = True,
) -> pa.Table:
    """Tokenize raw rows into rows of pairs/."""
    if init not in _tokenizers:
        _tokenizers[init] = load_tokenizer(init, "train_reward.init", trust_remote_code=trust_remote_code)
    tokenizer = _tokenizers[init]
    results = []
    for row in raw.rows():
        pair = f"the {raw.unit} is {row}" if isinstance(row, str) else read_pair(row)
        results.append(pair if isinstance(pair, str) else tokenize_pair(tokenizer, pair, max_length, overlong, day))
    return pa.Table.from_pylist([_row(result, eval_fraction, by_prompt) for result in results], schema=SCHEMA)


def _row(result: TokenizedPair | str, eval_fraction: float, by_prompt: bool) -> dict[str, Any]:
    if isinstance(result, str):
        return {"split": "unused", "reason": result}
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


def _tokenizer_digest(init: str, config: Config) -> str:
    tokenizer = load_tokenizer(init, "train_reward.init", trust_remote_code=config.models.trust_remote_code)
    vocabulary = repr(sorted(tokenizer.get_vocab().items())) + repr(tokenizer.chat_template)
    return hashlib.sha256(vocabulary.encode()).hexdigest()
