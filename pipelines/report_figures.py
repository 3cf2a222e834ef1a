"""The figures of a run's page, each from the manifest or from the statistics of its tables."""

import json
from dataclasses import fields
from typing import Any

from pipelines import summary
from pipelines.report_statistics import CompletionStatistics, PairStatistics
from pipelines.runtime.run_directory import RunDirectory
from rgtg.evaluation.gates import Gate
from rgtg.evaluation.stats import Mean
from rgtg.methods import METHODS
from rgtg.report.accumulate import Histogram, histogram, rank_correlation
from rgtg.report.places import without_places
from rgtg.report.run_figures import Cost, Gates, Length, Pair, Sides

SEVERITY = ("fail", "warn", "pass", "unknown", "off")  # in which gates are listed
DIGEST = "sha256:"  # before the digest of a model's files, in the inputs of a stage
# The stage whose settings of a section made what the page shows: a later one may have begun with others.
MADE_BY = {"run": "generate", "models": "generate", "generate": "generate", "train_reward": "train_reward"}
MADE_BY |= {"preferences": "preferences"}


def config_of(directory: RunDirectory) -> dict[str, Any]:
    """The settings that are not defaults, as they were written: another version may not know them all."""
    stages = {name: entry.get("config") or {} for name, entry in directory.manifest["stages"].items()}
    last = list(stages.values())[-1] if stages else {}
    return last | {section: stages[stage].get(section, {}) for section, stage in MADE_BY.items() if stage in stages}


def gates_of(counts: dict[str, Any]) -> Gates:
    lacking: dict[str, Any] = {field.name: "" if field.type is str else None for field in fields(Gate)}
    gates = [Gate(**{name: gate.get(name, none) for name, none in lacking.items()}) for gate in counts["gates"]]
    return Gates(counts["verdict"], sorted(gates, key=lambda gate: SEVERITY.index(gate.verdict)))


def accuracy_of(directory: RunDirectory, done: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By objective: the share of held-out pairs that a reward model ranks rightly, by the part that it has seen."""
    return {
        directory.inputs_of(stage).get("train_reward.objective", stage): counts["accuracy"]["by_fraction"]
        for stage, counts in done.items()
        if stage.startswith("train_reward") and "by_fraction" in counts.get("accuracy", {})
    }


def sides_of(
    method: str,
    pairs: PairStatistics | None,
    completions: CompletionStatistics | None,
    written: dict[str, Any],
) -> list[Sides]:
    """Guided against unguided by all who scored them, then chosen against rejected by the guide and by the judge."""
    guided = "guided" if method not in METHODS or METHODS[method].needs_reward else "of the method"
    found = []
    if completions and completions.gain.n:
        unguided, own = (moments.mean() for moments in completions.paired)
        found.append(Sides("reward model", ("unguided", guided), (unguided, own), completions.gain.mean()))
    for scorer, (own, unguided, gain) in written.get("scores", {}).items():
        if scorer != "score" and gain:  # the reward model's is known already, of every run
            found.append(Sides(scorer, ("unguided", guided), (mean_of(unguided), mean_of(own)), mean_of(gain)))
    if pairs:
        for scorer, scores in (("reward model, in the pairs", pairs.scores), ("judge, in the pairs", pairs.judged)):
            both = scores["rejected"].mean(), scores["chosen"].mean()
            gain = pairs.judged_gain.mean() if scores is pairs.judged else pairs.margin.mean()
            if any(both):
                found.append(Sides(scorer, ("rejected", "chosen"), both, gain))
    return found


def histograms_of(pairs: PairStatistics | None, completions: CompletionStatistics | None) -> dict[str, Histogram]:
    series: dict[str, dict[str, Any]] = {"score": {}, "margin": {}, "tokens": {}}
    totals = dict.fromkeys(series, 0)
    if pairs and pairs.sample.n:
        chosen, rejected, chosen_tokens, rejected_tokens = pairs.sample.rows.T
        series["score"] |= {"chosen": chosen, "rejected": rejected}
        series["margin"] |= {"margin": chosen - rejected}
        series["tokens"] |= {"chosen": chosen_tokens, "rejected": rejected_tokens}
        totals = {"score": 2 * pairs.sample.n, "margin": pairs.sample.n, "tokens": 2 * pairs.sample.n}
    if completions and completions.every.n:
        series["score"]["all"] = completions.every.rows[:, 1]
        series["tokens"]["all"] = completions.every.rows[:, 0]
        totals = totals | {name: totals[name] + completions.every.n for name in ("score", "tokens")}
    made = {name: histogram(of, totals[name]) for name, of in series.items() if of}
    return {name: of for name, of in made.items() if of}


def missing_of(
    has_pairs: bool,
    of_pairs: PairStatistics | None,
    completions: CompletionStatistics | None,
    pairs: list[Pair],
    *,
    has_tokenizer: bool,
) -> dict[str, str]:
    """A sentence for every section of which the run has nothing."""
    found = {}
    if not has_pairs:
        found["without"] = found["pairs"] = "The run has no finished pairs."
    elif of_pairs is None:
        found["pairs"] = "The pairs of this run have no scores."
    elif not pairs:
        found["pairs"] = "The completions that the pairs were made of are gone."
    if pairs and not any(side.pieces for pair in pairs for side in (pair.chosen, pair.rejected)):
        why = "the completions have no reward for each token" if has_tokenizer else "no tokenizer of the run was found"
        found["tokens"] = f"The texts stand without their tokens: {why}."
    if completions is None:
        found["scores"] = "The run has no finished completions."
    elif not completions.gain.n:
        found["scores"] = "There are no unguided completions of the same prompts to compare with."
    if of_pairs and not of_pairs.judged_gain.n:
        found["judge"] = "The run has no judge: nobody but its own reward model has looked at the pairs."
    if not of_pairs and not (completions and completions.every.n):
        found["distributions"] = "Nothing has a score yet."
    return found


def length_of(pairs: PairStatistics | None, completions: CompletionStatistics | None) -> Length | None:
    if not completions or not completions.sample.n:
        return None
    points = completions.sample.rows
    longer = pairs.longer.mean() if pairs else None
    return Length(
        rank=rank_correlation(*points.T),
        within=completions.within.correlation(),
        longer=longer.value if longer else None,
        sample=len(points),
        total=completions.sample.n,
        points=points,
    )


def cost_of(directory: RunDirectory, done: dict[str, dict[str, Any]]) -> Cost:
    seconds = {stage: took for stage, took in directory.seconds().items() if stage in done}
    decoded = [stage for stage in ("generate", summary.BASELINE) if done.get(stage, {}).get("decode_seconds")]
    decoding, tokens = (sum(done[stage][name] for stage in decoded) for name in ("decode_seconds", "decoded_tokens"))
    on_devices = sum(
        took * _devices(directory, stage)
        for stage, took in seconds.items()
        if stage in decoded or stage.startswith("train_reward")
    )
    pairs = sum(done.get("preferences", {}).get(split, 0) for split in ("train", "test"))
    whole = sum(seconds.values())
    return Cost(
        seconds=seconds,
        device_hours=on_devices / 3600 if on_devices else None,
        tokens=done.get("generate", {}).get("tokens"),
        tokens_per_second=tokens / decoding if decoded else None,
        pairs_per_hour=3600 * pairs / whole if pairs and whole else None,
    )


def _devices(directory: RunDirectory, stage: str) -> float:
    """Devices that a stage may have held: a worker of training takes one, an actor of decoding its part of one."""
    config = directory.manifest["stages"][stage].get("config") or {}
    if stage.startswith("train_reward"):
        return config.get("train_reward", {}).get("num_workers", 1)
    generate = config.get("generate", {})
    return generate.get("max_actors", 1) * generate.get("gpus_per_actor", 1.0)


def settings_of(config: dict[str, Any]) -> dict[str, str]:
    """What was not left at its default, without places: a page is shown around."""
    flat = {f"{section}.{key}": value for section, of in config.items() for key, value in of.items()}
    said = without_places({key: value for key, value in flat.items() if key not in ("run.root", "run.id")})
    return {key: value if isinstance(value, str) else json.dumps(value)[:1000] for key, value in said.items()}


def digests_of(directory: RunDirectory) -> dict[str, str]:
    return {
        f"{stage}: {name}": value
        for stage in directory.stages
        for name, value in directory.inputs_of(stage).items()
        if isinstance(value, str) and value.startswith(DIGEST)
    }


def mean_of(written: Any) -> Mean | None:
    return Mean(*written) if written else None
