"""What preference pairs are right, and what they teach: every strategy on the sandbox, whose true reward is known.

    pip install trl
    make preferences                                     every row: hours on two cores; it resumes where it stopped
    python -m pipelines.experiments.preferences --help   fewer rows

For each seed a reward model is trained and completes the same prompts guided, unguided and opposed, in one job. Pairs
by every strategy are compared with the truth. Policies are trained on them by DPO, on their chosen sides, or by both,
and measured by true reward and KL. Controls: a guide that was trained on shuffled labels must teach nothing, one with
beta 0 must be right in half of the cases, and labels by the true reward bound what any pairs can teach.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import typer

from pipelines.experiments import policies
from pipelines.experiments.labels import (
    ALL_SOURCES,
    BEST_OF,
    OF_EACH,
    SOURCES,
    Rows,
    completed,
    held_out,
    labels_of,
    pairs_of,
    scored,
    shuffled,
    truth,
)
from pipelines.experiments.policies import Pair
from pipelines.runtime.launch import guarded
from rgtg import sandbox
from rgtg.text_score import WAYS

TAUGHT = 1000  # prompts whose pairs teach; the others' are for the disagreement test


class Results:
    """Rows by their keys, kept in a file as they come: what is there is not computed again."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: dict[str, Any] = {row["key"]: row["value"] for row in map(json.loads, lines)}

    def get(self, key: str, compute: Callable[[], Any]) -> Any:
        if key not in self.rows:
            begun = time.monotonic()
            self.rows[key] = compute()
            with self.path.open("a") as file:
                file.write(json.dumps({"key": key, "value": self.rows[key]}) + "\n")
            print(f"{key}: {self.rows[key]} in {time.monotonic() - begun:.0f} s", flush=True)
        return self.rows[key]


@dataclass(frozen=True)
class Guide:
    """One reward model and how it guides: as it is, with beta 0, or trained on shuffled labels."""

    seed: int
    kind: str
    out: Path

    @cached_property
    def completed(self) -> tuple[Rows, str]:
        settings: dict[str, Any] = {"run.seed": self.seed}
        if self.kind == "shuffled":
            settings["train_reward.pairs"] = shuffled(self.out, self.seed)
        if self.kind == "beta 0":
            settings["generate.beta"] = 0.0
            settings["generate.opposed_samples"] = 0
        return completed(self.out, f"{self.kind.replace(' ', '-')}-{self.seed}", **settings)

    def rows(self, labels: str) -> Rows:
        """Scored by the guide, in the way that its training has chosen; in another way; or by the `truth`."""
        rows, way = self.completed
        return scored(rows, way if labels == "guide" else labels)

    def decoding(self) -> dict[str, float]:
        """What guidance itself gains over the language model and at which KL, and best-of-n by the score."""
        kept: dict[str, list[float]] = {"guided": [], "unguided": [], "best-of-n": [], "kl": []}
        for prompt, completions in self.rows("guide").items():
            guided, unguided = completions[:OF_EACH], completions[OF_EACH : OF_EACH + BEST_OF]
            kept["guided"] += [truth(prompt, c["text"]) for c in guided]
            kept["unguided"] += [truth(prompt, c["text"]) for c in unguided]
            kept["best-of-n"].append(truth(prompt, max(unguided, key=lambda c: c["score"])["text"]))
            # Of both the same part comes from sampling among the top-k tokens alone.
            kl = [fmean(c["guided_logprob"] - c["logprob"] for c in of_kind) for of_kind in (guided, unguided)]
            kept["kl"].append(kl[0] - kl[1])
        means = {name: fmean(values) for name, values in kept.items()}
        return {
            "guided": means["guided"] - means["unguided"],
            "best-of-n": means["best-of-n"] - means["unguided"],
            "kl": means["kl"],
        }


@dataclass(frozen=True)
class Lesson:
    """A policy that is trained on the pairs of a source, and what it is then."""

    guide: Guide
    labels: str
    source: str
    trainer: str
    beta: float
    steps: int
    seed: int

    @property
    def key(self) -> str:
        parts = (self.guide.kind, self.labels, self.source, self.trainer, self.beta, self.steps)
        return "/".join(map(str, ("policy", *parts, self.guide.seed, self.seed)))

    def learn(self) -> dict[str, float]:
        """The policy's gain in true reward over the language model, and its KL from it.

        `prefers_better` is the disagreement test: of held-out prompts whose unguided completion is truly better than
        the guided one, the part in which the policy has learned to prefer it.
        """
        rows = self.guide.rows(self.labels)
        names = list(rows)
        taught = pairs_of({name: rows[name] for name in names[:TAUGHT]}, SOURCES[self.source])
        path = policies.train(taught, TRAINERS[self.trainer](self.steps), self.seed, self.beta)
        try:
            of_policy = policies.measure(path, held_out(), 4, self.seed)
            found = {"gain": of_policy.true_reward - of_the_language_model(), "kl": of_policy.kl}
            disagreeing = [
                Pair(name, unguided["text"], guided["text"])
                for name in names[TAUGHT:]
                for guided, unguided in zip(rows[name][:OF_EACH], rows[name][OF_EACH:], strict=False)
                if truth(name, unguided["text"]) > truth(name, guided["text"])
            ]
            if disagreeing:
                found["prefers_better"] = policies.prefers_chosen(path, disagreeing)
        finally:
            shutil.rmtree(path)
        return found


@cache
def of_the_language_model() -> float:
    return policies.measure(str(sandbox.ensure().language), held_out(), 4, 0).true_reward


TRAINERS: dict[str, Callable[[int], dict[str, int]]] = {
    "dpo": lambda steps: {"dpo": steps},
    "sft": lambda steps: {"sft": steps},
    "sft, dpo": lambda steps: {"sft": steps // 2, "dpo": steps // 2},
}


def lessons(guide: Guide, plan: dict[str, list[str]], num_seeds: int) -> Iterator[Lesson]:
    """Every policy that a plan trains on the completions of a guide."""
    for source, trainer, steps, seed in product(plan["sources"], plan["trainers"], plan["steps"], range(num_seeds)):
        for beta in plan["betas"] if "dpo" in trainer else ["0.1"]:
            for labelled in ("guide", "truth") if guide.kind == "guide" else ("guide",):
                yield Lesson(guide, labelled, source, trainer, float(beta), int(steps), seed)


def main(
    out: Annotated[Path, typer.Option(help="Where runs and rows are kept.")] = Path("runs/preferences"),
    reward_seeds: Annotated[int, typer.Option(min=1, help="Reward models.")] = 3,
    policy_seeds: Annotated[int, typer.Option(min=0, help="Policies of each; 0 compares labels alone.")] = 2,
    controls: Annotated[bool, typer.Option(help="Also beta 0, and a guide of shuffled labels.")] = True,
    steps: Annotated[str, typer.Option(help="Optimizer steps of a policy.")] = "75,150,600",
    betas: Annotated[str, typer.Option(help="DPO's beta.")] = "0.05,0.1,0.3",
    sources: Annotated[str, typer.Option(help="Pairs that policies are trained on, separated by ;.")] = ALL_SOURCES,
    trainers: Annotated[str, typer.Option(help="How they are trained, separated by ;.")] = "dpo;sft;sft, dpo",
) -> None:
    """Labels and lessons of every strategy: rows and tables below --out."""
    results = Results(out / "results.jsonl")
    plan = {
        **{"sources": sources.split(";"), "trainers": trainers.split(";")},
        **{"steps": steps.split(","), "betas": betas.split(",")},
    }
    for seed, kind in product(range(reward_seeds), ("guide", "beta 0", "shuffled") if controls else ("guide",)):
        guide = Guide(seed, kind, out.absolute())
        for way in ("guide", *WAYS, "truth") if kind == "guide" else ("guide",):
            results.get(f"labels/{kind}/{way}/{seed}", partial(_labels, guide, way))
        results.get(f"decoding/{kind}/{seed}", guide.decoding)
        for lesson in lessons(guide, plan, policy_seeds):
            results.get(lesson.key, lesson.learn)
    text = report(results.rows)
    (out / "results.md").write_text(text)
    print(text)


def _labels(guide: Guide, way: str) -> dict[str, dict[str, float]]:
    return labels_of(guide.rows(way))


def report(rows: dict[str, Any]) -> str:
    """Tables of means over seeds, of all rows that are there."""
    lines = ["## Labels", "", "| guide | score | pairs | right way round | true margin |", "|---|---|---|---|---|"]
    for (kind, way), values in _by_cell(rows, "labels", 1).items():
        for source in values[0]:
            right, margin = (spread(value[source][name] for value in values) for name in ("right", "margin"))
            lines.append(f"| {kind} | {way} | {source} | {right} | {margin} |")
    lines += ["", "## Decoding", "", "| guide | guided | at KL | best of 12 unguided |", "|---|---|---|---|"]
    for (kind,), values in _by_cell(rows, "decoding", 1).items():
        lines.append(f"| {kind} | {' | '.join(spread(v[n] for v in values) for n in ('guided', 'kl', 'best-of-n'))} |")
    names = ("guide", "labels", "pairs", "trained by", "beta", "steps", "gain", "at KL", "prefers better")
    lines += ["", "## Policies", "", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for cell, values in _by_cell(rows, "policy", 2).items():
        figures = [spread(v[name] for v in values if name in v) for name in ("gain", "kl", "prefers_better")]
        lines.append(f"| {' | '.join((*cell, *figures))} |")
    return "\n".join(lines) + "\n"


def _by_cell(rows: dict[str, Any], kind: str, num_seeds: int) -> dict[tuple[str, ...], list[Any]]:
    """The values of one kind of rows, by their keys without the seeds."""
    found: dict[tuple[str, ...], list[Any]] = {}
    for key, value in rows.items():
        first, *cell = key.split("/")
        if first == kind:
            found.setdefault(tuple(cell[:-num_seeds]), []).append(value)
    return found


def spread(values: Iterable[float]) -> str:
    """Mean and standard deviation over seeds."""
    given = list(values)
    if not given:
        return ""
    return f"{fmean(given):+.2f} ± {stdev(given):.2f}" if len(given) > 1 else f"{given[0]:+.2f}"


if __name__ == "__main__":
    guarded(lambda: typer.run(main))
