"""The figures of a run's report: a pass over preferences/ and one over completions/, by columns and not by rows."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rgtg import storage, table_files
from rgtg.report.accumulate import Moments, Reservoir, Within

SAMPLE = 50_000  # pairs, and completions of each pool, that the charts are drawn from
SHOWN = 3  # pairs of each kind
REVIEWED = 100
CANDIDATES = 5 * SHOWN  # of each kind: a prompt is shown once, and may be of several kinds

NUMBERS = (
    *("score_chosen", "score_rejected", "chosen_tokens", "rejected_tokens", "chosen_index", "rejected_index"),
    *("judge_score_chosen", "judge_score_rejected", "agreement"),
)
OF_RANKINGS = {"score": "scores", "tokens": "completions_tokens", "index": "completions_index"}
OF_COMPLETIONS = ("num_tokens", "reward", "score", "logprob", "guided_logprob", "method", "beta")
POOLS = ("own", "unguided", "opposed")


class Picked(NamedTuple):
    """A pair of preferences/ that the report shows, without its texts; NaN is a number that it does not have."""

    key: float  # the smallest are picked
    prompt_id: str
    numbers: dict[str, float]


@dataclass
class PairStatistics:
    """Of all pairs, or of the first and the last one of all rankings."""

    scores: dict[str, Moments] = field(default_factory=lambda: {side: Moments() for side in ("chosen", "rejected")})
    judged: dict[str, Moments] = field(default_factory=lambda: {side: Moments() for side in ("chosen", "rejected")})
    margin: Moments = field(default_factory=Moments)
    judged_gain: Moments = field(default_factory=Moments)
    longer: Moments = field(default_factory=Moments)  # 1 where chosen has more tokens, a half where both have as many
    sample: Reservoir = field(default_factory=lambda: Reservoir(SAMPLE, 4))  # scores, then tokens, chosen first
    picked: dict[str, list[Picked]] = field(default_factory=dict)


def pair_statistics(uri: str, seed: int) -> PairStatistics | None:
    """None where the pairs have no scores, as no run of `rgtg` has written them."""
    found, random = PairStatistics(), np.random.default_rng(seed)
    names = set(table_files.schema_of(uri).names)
    if not {"prompt_id", "score_chosen", "score_rejected"} <= names and not {"prompt_id", "scores"} <= names:
        return None
    columns = [name for name in ("prompt_id", *NUMBERS, *OF_RANKINGS.values()) if name in names]
    for table in table_files.read_tables(uri, columns):
        if not table.num_rows:
            continue
        n = _pair_numbers(table)
        margin, judged = n["score_chosen"] - n["score_rejected"], n["judge_score_chosen"] - n["judge_score_rejected"]
        for side in ("chosen", "rejected"):
            found.scores[side].add(n[f"score_{side}"])
            found.judged[side].add(n[f"judge_score_{side}"])
        found.margin.add(margin)
        found.judged_gain.add(judged)
        found.longer.add(np.sign(n["chosen_tokens"] - n["rejected_tokens"]) / 2 + 0.5)
        found.sample.add(n["score_chosen"], n["score_rejected"], n["chosen_tokens"], n["rejected_tokens"])
        keys = {
            "of largest margin": -margin,
            "of smallest margin": margin,
            "the judge disagrees": np.where(judged < 0, judged, np.nan),
            "at random": random.random(len(margin)),
            "review": random.random(len(margin)),
        }
        for kind, key in keys.items():
            _pick(found.picked, kind, key, table["prompt_id"], n)
    return found


def _pick(picked: dict[str, list[Picked]], kind: str, key: np.ndarray, ids: pa.ChunkedArray, numbers: Any) -> None:
    """Keep the pairs of the smallest keys; those without a key are no pairs of the kind."""
    size = REVIEWED if kind == "review" else CANDIDATES
    places = np.flatnonzero(np.isfinite(key))
    if len(places) > size:
        places = places[np.argpartition(key[places], size)[:size]]
    new = [
        Picked(float(key[i]), ids[int(i)].as_py(), {name: float(values[i]) for name, values in numbers.items()})
        for i in places
    ]
    picked[kind] = heapq.nsmallest(size, [*picked.get(kind, []), *new], key=lambda pair: pair[:2])


def _pair_numbers(table: pa.Table) -> dict[str, np.ndarray]:
    """NUMBERS of each row, NaN for what the table does not have; of a ranking those of its first and last one."""
    if "scores" not in table.column_names:
        return {name: _numbers(table, name) for name in NUMBERS}
    found = {name: np.full(table.num_rows, np.nan) for name in NUMBERS}
    for of, name in OF_RANKINGS.items():
        if name in table.column_names:
            lists = table[name].combine_chunks()
            offsets, values = lists.offsets.to_numpy(), _floats(lists.values)
            chosen, rejected = (("score_chosen", "score_rejected"), (f"chosen_{of}", f"rejected_{of}"))[of != "score"]
            found[chosen], found[rejected] = values[offsets[:-1]], values[offsets[1:] - 1]
    return found


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    return _floats(table[name]) if name in table.column_names else np.full(table.num_rows, np.nan)


def _floats(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """As float64, NaN for nulls."""
    return values.cast(pa.float64()).fill_null(float("nan")).to_numpy()


@dataclass
class CompletionStatistics:
    """Of all completions by pool, as `selection.pool_of` has it; means are over prompts."""

    scores: dict[str, Moments] = field(default_factory=lambda: {pool: Moments() for pool in POOLS})
    paired: tuple[Moments, Moments] = field(default_factory=lambda: (Moments(), Moments()))  # unguided, own: there
    gain: Moments = field(default_factory=Moments)  # of own over unguided, on the same prompts
    sample: Reservoir = field(default_factory=lambda: Reservoir(SAMPLE, 2))  # tokens and score of the own
    every: Reservoir = field(default_factory=lambda: Reservoir(SAMPLE, 2))  # tokens and score of all
    within: Within = field(default_factory=Within)  # of tokens and score, of the own
    files: set[str] = field(default_factory=set)  # those with prompts that were asked for


def completion_statistics(uri: str, baseline: str | None, prompt_ids: set[str]) -> CompletionStatistics:
    """`baseline` holds unguided completions of some of the prompts, if they are in a table of their own."""
    found = CompletionStatistics()
    known = _baseline(baseline) if baseline else None
    wanted = pa.array(sorted(prompt_ids), pa.string())
    columns = ["prompt_id", "error", *(f"completions.list.element.{name}" for name in OF_COMPLETIONS)]
    for file, table in zip(storage.list_files(uri, (".parquet",)), table_files.read_tables(uri, columns), strict=True):
        if pc.any(pc.is_in(table["prompt_id"], wanted)).as_py():
            found.files.add(file.path)
        for part in _parts(table):
            _add(found, part, known)
    return found


class _Part(NamedTuple):
    """The completions of a table with a finite score: (n,) each."""

    ids: pa.Array  # of the rows
    row: np.ndarray
    pool: np.ndarray  # a place in POOLS
    tokens: np.ndarray
    score: np.ndarray


def _parts(table: pa.Table) -> Iterator[_Part]:
    table = table.filter(pc.and_(pc.is_null(table["error"]), pc.is_valid(table["completions"])))
    for batch in table.combine_chunks().to_batches():
        lists = batch["completions"]
        flat = lists.flatten()
        if not len(flat):
            continue
        sizes = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        row = np.repeat(np.arange(len(sizes)), sizes)
        names = {flat.type.field(i).name for i in range(flat.type.num_fields)}
        # A run from before there were scores has its rewards for them.
        score, tokens = (
            _floats(flat.field("score" if "score" in names else "reward")),
            _floats(flat.field("num_tokens")),
        )
        pool = _pools(flat, row) if {"method", "beta"} <= names else np.zeros(len(row), np.int64)
        good = np.isfinite(score) & np.isfinite(tokens)
        yield _Part(batch["prompt_id"], row[good], pool[good], tokens[good], score[good])


def _pools(flat: pa.StructArray, row: np.ndarray) -> np.ndarray:
    """The pool of each completion: a prompt's first one is by the run's own method and beta."""
    method = flat.field("method").fill_null("").dictionary_encode()
    code, beta = method.indices.to_numpy(), np.nan_to_num(_floats(flat.field("beta")), nan=-1e300)
    first = np.searchsorted(row, row)  # the first place of the same row
    own = (code == code[first]) & (beta == beta[first])
    unguided = np.array(method.dictionary.to_pylist(), object)[code] == "unguided"
    return np.where(own, 0, np.where(unguided, 1, 2))


def _add(found: CompletionStatistics, part: _Part, known: "tuple[pa.Array, np.ndarray] | None") -> None:
    means = np.stack([_means(part, pool) for pool in range(len(POOLS))])  # (pools, rows)
    for pool, of_rows in zip(POOLS, means, strict=True):
        found.scores[pool].add(of_rows)
    unguided = means[1]
    if known is not None:
        place = pc.index_in(part.ids, known[0]).fill_null(-1).to_numpy(zero_copy_only=False)
        unguided = np.where(place < 0, np.nan, known[1][place]) if len(known[1]) else np.full(len(place), np.nan)
    found.gain.add(means[0] - unguided)
    both = np.isfinite(means[0] - unguided)
    for moments, values in zip(found.paired, (unguided, means[0]), strict=True):
        moments.add(values[both])
    own = part.pool == 0
    found.sample.add(part.tokens[own], part.score[own])
    found.every.add(part.tokens, part.score)
    found.within.add(part.tokens[own], part.score[own], part.row[own])


def _means(part: _Part, pool: int) -> np.ndarray:
    """The mean score of one pool of each row, NaN where it has none."""
    of = part.pool == pool
    rows = len(part.ids)
    count = np.bincount(part.row[of], minlength=rows)
    total = np.bincount(part.row[of], part.score[of], minlength=rows)
    return np.where(count, total / np.maximum(count, 1), np.nan)


def _baseline(uri: str) -> tuple[pa.Array, np.ndarray]:
    """The prompts of a table of completions, and the mean score of each."""
    columns = [
        "prompt_id",
        "error",
        *(f"completions.list.element.{name}" for name in ("num_tokens", "reward", "score")),
    ]
    parts = [part for table in table_files.read_tables(uri, columns) for part in _parts(table)]
    ids = pa.chunked_array([part.ids for part in parts], pa.string()).combine_chunks()
    return ids, np.concatenate([np.empty(0), *(_means(part, 0) for part in parts)])
