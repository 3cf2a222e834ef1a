"""Completions of the sandbox by the product's jobs, pairs of them by every strategy, and how many are truly right."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import generate, train_reward
from pipelines.completions import COLUMNS, completions_of
from pipelines.experiments import probes
from pipelines.experiments.policies import Pair
from rgtg import config_file, sandbox, table_files
from rgtg.parquet import open_parquet
from rgtg.preferences.selection import Rules, Statistics, candidates, fraction, select
from rgtg.sandbox.world import prompts as sandbox_prompts
from rgtg.sandbox.world import true_reward
from rgtg.text_score import score

NUM_PROMPTS = 1200
OF_EACH = 4  # completions of a kind that a strategy takes
BEST_OF = 12  # unguided ones for best-of-n
EVALUATED = 150  # held-out prompts, four samples each, of a policy

RULES = Rules(max_similarity=0.9)  # the product's own

ACTORS = 2  # one for each core of a small machine

TOKEN_REWARDS = ["completions.list.element.token_rewards"]

Rows = dict[str, list[dict[str, Any]]]  # the completions of each prompt
Judge = Callable[[str, str], float]  # how good a completion of a prompt is


class Source(NamedTuple):
    """Pairs of a strategy; or of `best-worst` among so many `unguided` completions alone."""

    strategy: str
    unguided: int | None = None


SOURCES = {
    "best-worst": Source("best-worst"),
    "best-near": Source("best-near"),
    "best-random": Source("best-random"),
    "best-worst of 4 unguided": Source("best-worst", OF_EACH),
    "best-worst of 12 unguided": Source("best-worst", BEST_OF),
    "guided-unguided": Source("guided-unguided"),
    "guided-unguided-random": Source("guided-unguided-random"),
    "opposed": Source("opposed"),
}


def completed(out: Path, name: str, **settings: Any) -> tuple[Rows, dict[str, Any]]:
    """What a reward model has completed, by the product's jobs, which resume; and its held-out accuracy, with the
    `score` that it gives texts. It is trained here, or else is `models.reward` and its accuracy is not known.
    """
    given = {
        **{"run.root": str(out), "run.id": name, "models.device": "cpu"},
        **{"generate.samples": OF_EACH, "generate.unguided_samples": BEST_OF, "generate.opposed_samples": OF_EACH},
        **{"generate.min_actors": ACTORS, "generate.max_actors": ACTORS},
        **settings,
    }
    config = config_file.load(None, [f"{key}={value}" for key, value in given.items()])
    accuracy = {} if config.models.reward else train_reward.run(config).counts(train_reward.STAGE)["accuracy"]
    directory = generate.run(config)
    tables = table_files.read_tables(directory.path("completions"), COLUMNS + TOKEN_REWARDS)
    rows = {row["prompt"]: completions_of(row) for table in tables for row in table.to_pylist()}
    return dict(sorted(rows.items())), accuracy


@cache
def prompts(out: Path) -> str:
    """A file of the sandbox's prompts, none of which is held out."""
    path = out / "prompts.parquet"
    out.mkdir(parents=True, exist_ok=True)
    others = set(held_out())
    given = [prompt for prompt in sandbox_prompts(NUM_PROMPTS + EVALUATED, seed=7) if prompt not in others]
    pq.write_table(pa.table({"prompt": given[:NUM_PROMPTS]}), path)
    return str(path)


@cache
def held_out() -> list[str]:
    return [row["prompt"] for row in _rows_of(sandbox.ensure().prompts)[:EVALUATED]]


def given_pairs(n: int) -> list[Pair]:
    """The first ones of the sandbox, on which its reward models are trained."""
    return [Pair(row["prompt"], row["chosen"], row["rejected"]) for row in _rows_of(sandbox.ensure().pairs)[:n]]


def shuffled(out: Path, seed: int) -> str:
    """The sandbox's pairs, with half of them the wrong way round."""
    rows = _rows_of(sandbox.ensure().pairs)
    for row in rows:
        if fraction(f"shuffled/{seed}/{row['prompt']}/{row['chosen']}") < 0.5:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    path = out / f"shuffled-{seed}.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def _rows_of(path: Path) -> list[dict[str, Any]]:
    with pa.OSFile(str(path)) as file:
        return open_parquet(file).read().to_pylist()


@cache
def truth(prompt: str, text: str) -> float:
    return true_reward(prompt + text)


def scored(rows: Rows, way: str) -> Rows:
    """The completions with another score: a way of their rewards, or the `truth`."""

    def of(prompt: str, c: dict[str, Any]) -> float:
        return truth(prompt, c["text"]) if way == "truth" else score(c["token_rewards"], way)

    return {prompt: [c | {"score": of(prompt, c)} for c in completions] for prompt, completions in rows.items()}


def pairs_of(rows: Rows, source: Source, rules: Rules = RULES) -> list[Pair]:
    """One pair of each prompt that has one."""
    taken = {prompt: candidates(_taken(completions, source), rules) for prompt, completions in rows.items()}
    statistics = Statistics()
    for found in taken.values():
        statistics.add(found)
    night = statistics.night()
    pairs = []
    for prompt, found in taken.items():
        selected = select(found, source.strategy, rules, night, prompt)
        if not isinstance(selected, str):
            pairs.append(Pair(prompt, *(c.text for c in selected)))
    return pairs


def _taken(completions: list[dict[str, Any]], source: Source) -> list[dict[str, Any]]:
    """Those of a prompt that a source takes; the first one is of the strategy's own pool."""
    unguided = completions[OF_EACH : OF_EACH + BEST_OF]
    if source.unguided:
        return unguided[: source.unguided] if len(unguided) >= source.unguided else []
    return [*completions[:OF_EACH], *unguided[:OF_EACH], *completions[OF_EACH + BEST_OF :]]


def labels_of(rows: Rows, judge: Judge = truth, rules: Rules = RULES) -> dict[str, dict[str, float]]:
    """Of the pairs of each source: how many are right by the judge (a tie is half), by how much, and how many sides
    their length or their 2-grams give away.
    """
    found = {}
    for name, source in SOURCES.items():
        pairs = pairs_of(rows, source, rules)
        if not pairs:  # a control has not completions of every kind
            continue
        margins = [judge(p.prompt, p.chosen) - judge(p.prompt, p.rejected) for p in pairs]
        found[name] = {
            "pairs": len(pairs),
            "right": fmean((margin > 0) + 0.5 * (margin == 0) for margin in margins),
            "margin": fmean(margins),
            "length": probes.by_length(pairs),
            "2-grams": probes.by_two_grams(pairs),
        }
    return found
