"""Take preference pairs in, once, into the run's own pairs/: read in any format, tokenised, split and shuffled.

A Ray Data job, since tokenising a million pairs takes a while. Pairs that cannot be used stay in the table, with the
reason, so that each one can be looked up; training reads the others, epoch after epoch.
"""

import hashlib
import json
import time
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from pipelines import ray_session
from pipelines.run_directory import RunDirectory, listing
from rgtg import storage
from rgtg.config import Config
from rgtg.errors import UserError
from rgtg.models.loading import load_tokenizer
from rgtg.preferences.readers import PAIR_COLUMNS, read_pair
from rgtg.preferences.tokenized import TokenizedPair, tokenize_pair

STAGE = "pairs"
SUFFIXES = (".parquet", ".jsonl", ".json")
BATCH_ROWS = 256

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
    inputs |= {f"train_reward.{name}": getattr(settings, name) for name in ("max_length", "overlong", "eval_fraction")}
    inputs |= {"run.seed": config.run.seed, "tokenizer": _tokenizer_digest(init, config)}
    if directory.begin(STAGE, inputs) == "done":
        return
    begun = time.monotonic()
    target = directory.path("pairs")
    storage.remove(target)
    storage.make_directory(target)
    filesystem, path = storage.resolve(target)
    eval_fraction = 0.0 if settings.eval_pairs else settings.eval_fraction
    datasets = [
        dataset.map_batches(
            _tokenize,  # type: ignore[arg-type]  # Ray's own annotation leaves out Arrow tables with arguments
            fn_kwargs={
                "init": init,
                "trust_remote_code": config.models.trust_remote_code,
                "max_length": settings.max_length,
                "overlong": settings.overlong,
                "eval_fraction": 1.0 if name == "eval_pairs" else eval_fraction,
            },
            batch_size=BATCH_ROWS,
            batch_format="pyarrow",
        )
        for name, places in sources.items()
        if places
        for dataset in _read(places)
    ]
    every = datasets[0].union(*datasets[1:]) if len(datasets) > 1 else datasets[0]
    with ray_session.explained("reading the pairs"):
        every.random_shuffle(seed=config.run.seed).write_parquet(path, filesystem=filesystem)
    counts = count(target)
    reasons = "".join(f"\n  {n} unused: {reason}" for reason, n in counts["unused"].items())
    print(f"pairs: {counts['train']} to train on, {counts['eval']} held out{reasons}", flush=True)
    if not counts["train"] or not counts["eval"]:
        raise UserError(
            f"of the pairs at {', '.join(settings.pairs)}, {counts['train']} are left to train on and "
            f"{counts['eval']} to evaluate on; see the reasons above"
        )
    directory.finish(STAGE, counts, time.monotonic() - begun)


def count(target: str) -> dict[str, Any]:
    """Pairs to train on and held out, and the unused ones by reason."""
    filesystem, _ = storage.resolve(target)
    splits: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    for file in storage.list_files(target, (".parquet",)):
        table = pq.read_table(file.path, filesystem=filesystem, columns=["split", "reason"])
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


def _read(places: list[str]) -> list["ray.data.Dataset"]:
    """One dataset for the Parquet files and one for the lines of JSON, the rows as they are."""
    datasets: list[ray.data.Dataset] = []
    files = [(place, file) for place in places for file in storage.list_files(place, SUFFIXES)]
    for parquet in (True, False):
        chosen = [(place, file.path) for place, file in files if file.path.endswith(".parquet") == parquet]
        if not chosen:
            continue
        filesystem, _ = storage.resolve(chosen[0][0])
        paths = [path for _, path in chosen]
        if parquet:
            for path in paths:
                _check_parquet(filesystem, path)
            datasets.extend(ray.data.read_parquet(path, filesystem=filesystem) for path in paths)
        else:
            datasets.append(ray.data.read_text(paths, filesystem=filesystem))
    return datasets


def _check_parquet(filesystem: Any, path: str) -> None:
    try:
        names = set(pq.read_schema(path, filesystem=filesystem).names)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path!r} is not a readable Parquet file: {str(error).splitlines()[0]}") from error
    if not names & PAIR_COLUMNS:
        raise UserError(
            f"{path!r} holds no preference pairs: its columns are {', '.join(sorted(names))}, and the known formats "
            "use chosen and rejected, or completions with scores"
        )


_tokenizers: dict[str, Any] = {}  # of this worker process, by place: a task is called for every batch


def _tokenize(
    batch: pa.Table, init: str, trust_remote_code: bool, max_length: int, overlong: Any, eval_fraction: float
) -> pa.Table:
    """A batch of raw rows (or of lines of JSON) as rows of pairs/."""
    if init not in _tokenizers:
        place = storage.local_copy(init)
        _tokenizers[init] = load_tokenizer(place, "train_reward.init", trust_remote_code=trust_remote_code)
    tokenizer = _tokenizers[init]
    if batch.column_names == ["text"]:
        rows = [_parse(line) for line in batch["text"].to_pylist() if line.strip()]
    else:
        rows = batch.select([name for name in batch.column_names if name in PAIR_COLUMNS]).to_pylist()
    results = []
    for row in rows:
        pair = row if isinstance(row, str) else read_pair(row)
        results.append(pair if isinstance(pair, str) else tokenize_pair(tokenizer, pair, max_length, overlong))
    return pa.Table.from_pylist([_row(result, eval_fraction) for result in results], schema=SCHEMA)


def _parse(line: str) -> dict[str, Any] | str:
    try:
        row = json.loads(line)
    except ValueError:
        return "the line is not JSON"
    return row if isinstance(row, dict) else "the line is not a JSON object"


def _row(result: TokenizedPair | str, eval_fraction: float) -> dict[str, Any]:
    if isinstance(result, str):
        return {"split": "unused", "reason": result}
    # By prompt where there is one: the same prompt on both sides of the split would flatter the figures.
    key = result.prompt_ids if len(result.prompt_ids) > 1 else result.prompt_ids + result.chosen_ids
    part = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") / 2**64
    return {
        "split": "eval" if part < eval_fraction else "train",
        "prompt_ids": result.prompt_ids,
        "chosen_ids": result.chosen_ids,
        "rejected_ids": result.rejected_ids,
        "common": result.common,
    }


def _tokenizer_digest(init: str, config: Config) -> str:
    tokenizer = load_tokenizer(
        storage.local_copy(init), "train_reward.init", trust_remote_code=config.models.trust_remote_code
    )
    vocabulary = repr(sorted(tokenizer.get_vocab().items())) + repr(tokenizer.chat_template)
    return hashlib.sha256(vocabulary.encode()).hexdigest()
