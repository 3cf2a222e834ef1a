"""The first stage of training: preference pairs of any format, tokenized, split and shuffled into the run's pairs/.

It runs on Ray Data, since tokenizing a million pairs takes a while. Unusable pairs stay in the table with the reason,
their file and row; training reads the others in every epoch.
"""

import hashlib
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import pyarrow.compute as pc
import ray
from ray.data import DataContext

from pipelines.pairs_worker import Tokenize, chunks, read, tokenized
from pipelines.runtime import ray_session
from pipelines.runtime.job_context import JobContext
from pipelines.runtime.job_log import log
from rgtg import storage, table_files
from rgtg.config import Config
from rgtg.errors import UserError, printable
from rgtg.input_files import Found, InputFile, Unreadable, check_rows, check_share, first_rows, lines
from rgtg.models.loading import context_length, load_config, load_tokenizer
from rgtg.preferences.readers import PAIR_COLUMNS
from rgtg.preferences.tokenized import TokenizedPair
from rgtg.report import warnings

STAGE = "pairs"
BLOCK_CHUNKS = 16  # chunks per tokenizing task
# Blocks that are shuffled. The driver holds a reference, some 25 KB, to each part that goes from one block to another:
# with 250 blocks, of a million pairs, it took 1.8 GB.
MOST_SHUFFLED = 64
MOST_BLOCKS = 256  # tasks that read files
LOOKED_FILES, LOOKED_ROWS = 3, 256  # whose first rows are read before Ray starts
MOST_REASONS = 50  # that the log and the manifest tell apart; some name what a file calls its fields


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
    tokenize = Tokenize(init, config.models.trust_remote_code, max_length, settings.overlong, directory.date)
    looked = look([file for of in found.values() for file in of.files], tokenize)
    if not looked.usable:
        log.warning(f"pairs: {looked}")
    ray_session.start(config)
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
            _write(files, tokenize._replace(by_prompt=False), config.run.seed, target)
            counts = count(target)
    counts |= {"skipped_files": skipped}
    reasons = lines(skipped)
    reasons += _unused(counts["unused"])
    if counts["guessed"]:
        reasons += (
            f"\n  {counts['guessed']} have no column for the prompt: the common beginning of chosen and rejected is "
            "taken for it"
        )
    log.info(f"pairs: {counts['train']} for training, {counts['eval']} held out{reasons}")
    if not counts["train"] or not counts["eval"]:
        raise UserError(
            f"of the pairs at {', '.join(settings.pairs)}, {counts['train']} are left to train on and "
            f"{counts['eval']} to evaluate on; {'see the reasons above' if reasons else 'the files hold no pairs'}"
        )
    directory.finish(STAGE, counts, time.monotonic() - begun)
    if weak := warnings.of_pairs(counts):
        log.warning(f"pairs: WARNING: {weak}")


class Looked(NamedTuple):
    """What the first rows of the files hold."""

    rows: int
    usable: int
    unused: dict[str, int]  # by reason

    def __str__(self) -> str:
        return f"{self.usable} of the first {self.rows} rows are usable pairs{_unused(self.unused)}"


def look(files: list[InputFile], tokenize: Tokenize) -> Looked:
    """Read the first rows of the first files, before anything starts that takes time.

    Raises UserError where these are all rows and none is usable, and for what fails every row: messages for a
    tokenizer without a chat template; and for a file without a column of pairs.
    """
    rows = usable = 0
    unused: Counter[str] = Counter()
    whole = len(files) <= LOOKED_FILES
    for file in files[:LOOKED_FILES]:
        try:
            raw = first_rows(file, LOOKED_ROWS)
        except Unreadable as error:
            unused[f"{file.path!r}: {error}"] += 1
            continue
        if not raw.is_json:
            _check_columns(file, raw.table.column_names)
            known = [name for name in raw.table.column_names if name in PAIR_COLUMNS]
            raw = replace(raw, table=raw.table.select(known))
        results = [result for _, result in read(raw, tokenize)]
        rows += len(results)
        usable += sum(not isinstance(result, str) for result in results)
        unused.update(result for result in results if isinstance(result, str))
        whole = whole and len(results) < LOOKED_ROWS
    looked = Looked(rows, usable, dict(unused.most_common(MOST_REASONS)))
    if whole and files and not usable:
        named = ", ".join(repr(file.path) for file in files)
        raise UserError(f"none of the {rows} rows of {named} is a pair that can be used:{_unused(looked.unused)}")
    return looked


def _unused(reasons: dict[str, int]) -> str:
    return "".join(f"\n  {n} unused: {printable(reason)}" for reason, n in reasons.items())


def _write(files: list[dict[str, Any]], tokenize: Tokenize, seed: int, target: str) -> None:
    """Tokenize and shuffle all pairs of `files` into `target`."""
    filesystem, path = storage.resolve(target)
    in_order = DataContext.get_current().copy()
    in_order.execution_options.preserve_order = True  # a shuffle by seed is reproducible only of ordered rows
    with DataContext.current(in_order):
        raw = ray.data.from_items(files, override_num_blocks=min(len(files), MOST_BLOCKS)).map_batches(
            chunks,  # type: ignore[arg-type]  # Ray's annotation leaves out Arrow tables
            batch_size=1,
            batch_format="pyarrow",
        )
        pairs = raw.repartition(target_num_rows_per_block=BLOCK_CHUNKS).map_batches(
            tokenized,  # type: ignore[arg-type]
            fn_args=[tokenize],
            batch_size=1,
            batch_format="pyarrow",
        )
        pairs = pairs.materialize()
        if pairs.num_blocks() > MOST_SHUFFLED:
            pairs = pairs.repartition(MOST_SHUFFLED)
        pairs.random_shuffle(seed=seed).write_parquet(path, filesystem=filesystem)


def count(target: str) -> dict[str, Any]:
    """The number of training pairs, of held-out pairs, and of unused pairs by reason, the most frequent ones first."""
    splits: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    guessed = 0
    for table in table_files.read_tables(target, ["split", "reason", "guessed"]):
        splits.update(table["split"].to_pylist())
        guessed += pc.sum(table["guessed"]).as_py() or 0
        unused.update(reason for reason in table["reason"].to_pylist() if reason)
    said = dict(unused.most_common(MOST_REASONS))
    if rest := unused.total() - sum(said.values()):
        said["other reasons"] = rest
    return {"train": splits["train"], "eval": splits["eval"], "unused": said, "guessed": guessed}


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
    if names is not None:
        _check_columns(file, names)
    return None


def _check_columns(file: InputFile, names: list[str]) -> None:
    if not PAIR_COLUMNS.intersection(names):
        raise UserError(
            f"{file.path!r} holds no preference pairs: its columns are {', '.join(sorted(names))}; give columns "
            "chosen and rejected, or completions with scores"
        )


def _tokenizer_digest(init: str, config: Config) -> str:
    tokenizer = load_tokenizer(init, "train_reward.init", trust_remote_code=config.models.trust_remote_code)
    vocabulary = repr(sorted(tokenizer.get_vocab().items())) + repr(tokenizer.chat_template)
    return hashlib.sha256(vocabulary.encode()).hexdigest()
