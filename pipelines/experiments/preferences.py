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
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from pipelines.experiments.guides import Guide
from pipelines.experiments.labels import labels_of
from pipelines.experiments.lessons import COURSES, GIVEN, Lesson
from pipelines.experiments.preferences_report import picture, tables
from pipelines.runtime.launch import guarded
from rgtg.text_score import WAYS

KINDS = ("guide", "beta 0", "shuffled")
AT_ONCE = 2  # policies in training


class Results:
    """Rows by their keys, kept in a file as they come: what is there is not computed again."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: dict[str, Any] = {row["key"]: row["value"] for row in map(json.loads, lines)}

    def compute(self, key: str, value: Callable[[], Any]) -> None:
        if key not in self.rows:
            self.add(key, value())

    def add(self, key: str, value: Any) -> None:
        self.rows[key] = value
        with self.path.open("a") as file:
            file.write(json.dumps({"key": key, "value": value}) + "\n")
        print(f"{key}: {value}", flush=True)


def main(
    out: Annotated[Path, typer.Option(help="Where runs and rows are kept.")] = Path("runs/preferences"),
    reward_seeds: Annotated[int, typer.Option(min=1, help="Reward models.")] = 5,
    policy_seeds: Annotated[int, typer.Option(min=0, help="Policies of each; 0 compares labels alone.")] = 2,
    courses: Annotated[int, typer.Option(min=0, help="So many ways of training a policy, the main ones first.")] = len(
        COURSES
    ),
) -> None:
    """Labels and lessons of every strategy: rows, tables and a picture below --out."""
    results = Results(out / "results.jsonl")
    guides = {(seed, kind): Guide(seed, kind, out.absolute()) for kind in KINDS for seed in range(reward_seeds)}
    for (seed, kind), guide in guides.items():
        for way in ("guide", *WAYS, "truth") if kind == "guide" else ("guide",):
            results.compute(f"labels/{kind}/{way}/{seed}", partial(_labels, guide, way))
        results.compute(f"decoding/{kind}/{seed}", guide.decoding)
        if kind != "beta 0":  # whose reward model is the guide's
            results.compute(f"accuracy/{kind}/{seed}", partial(_accuracy, guide))
    results.compute("seconds/0", guides[0, "guide"].seconds)
    lessons = [
        Lesson(course, Guide(seed, course.kind, out.absolute()), policy_seed)
        for course, seed, policy_seed in product(COURSES[:courses], range(reward_seeds), range(policy_seeds))
        if course.source != GIVEN or seed == 0  # which no guide has made
    ]
    _teach([lesson for lesson in lessons if lesson.key not in results.rows], results)
    text = tables(results.rows)
    (out / "results.md").write_text(text)
    (out / "curves.png").write_bytes(picture(results.rows))
    print(text)


def _teach(lessons: list[Lesson], results: Results) -> None:
    """Two policies at once with a thread each: in 80 s a policy, where one at a time with two threads takes 120."""
    with ProcessPoolExecutor(AT_ONCE, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        learned = {pool.submit(lesson.learn): lesson.key for lesson in lessons}
        for future in as_completed(learned):
            results.add(learned[future], future.result())


def _labels(guide: Guide, way: str) -> dict[str, dict[str, float]]:
    return labels_of(guide.rows(way))


def _accuracy(guide: Guide) -> dict[str, float]:
    return guide.accuracy


if __name__ == "__main__":
    guarded(lambda: typer.run(main))
