"""What pairs teach: policies that are trained on them, and which ones `make preferences` trains."""

import shutil
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from pipelines.experiments import policies
from pipelines.experiments.guides import Guide
from pipelines.experiments.labels import OF_EACH, SOURCES, given_pairs, held_out, pairs_of, truth
from pipelines.experiments.policies import Pair
from rgtg import sandbox

TAUGHT = 1000  # prompts whose pairs teach; the others' are for the disagreement test

GIVEN = "given pairs"  # those of the sandbox, which the reward models are trained on
TRAINERS: dict[str, tuple[str, ...]] = {"dpo": ("dpo",), "sft": ("sft",), "sft, dpo": ("sft", "dpo")}


class Course(NamedTuple):
    """Which pairs a policy is trained on, and how; each is taught with every seed."""

    source: str
    trainer: str = "dpo"
    beta: float = 0.1
    steps: int = 150  # of each trainer
    kind: str = "guide"
    labels: str = "guide"


RIVAL = "best-worst of 12 unguided"
RANDOM = "guided-unguided-random"
STRATEGIES = (RIVAL, "guided-unguided", RANDOM)

# In this order, so that what matters most is there first.
COURSES = (
    *(Course(source) for source in STRATEGIES),
    Course(RANDOM, kind="shuffled"),
    *(Course(source, "sft", steps=600) for source in STRATEGIES),
    *(Course(source, beta=beta) for beta in (0.03, 0.3) for source in STRATEGIES),
    Course(RANDOM, "sft, dpo"),
    Course("guided-unguided", labels="truth"),
    *(Course(source) for source in ("best-worst of 4 unguided", "best-worst", "best-random", "opposed")),
    *(Course(GIVEN, beta=beta) for beta in (0.1, 0.03, 0.3)),
)


@dataclass(frozen=True)
class Lesson:
    """A course with seeds."""

    course: Course
    guide: Guide
    seed: int

    @property
    def key(self) -> str:
        c = self.course
        parts = (c.kind, c.labels, c.source, c.trainer, c.beta, c.steps, self.guide.seed, self.seed)
        return "/".join(map(str, ("policy", *parts)))

    def learn(self) -> dict[str, float]:
        """The policy's gain in true reward over the language model, and its KL from it.

        `prefers_better` is the disagreement test: of held-out prompts whose unguided completion is truly better than
        the guided one, the part in which the policy has learned to prefer it.
        """
        course = self.course
        path = policies.train(
            self._pairs(), dict.fromkeys(TRAINERS[course.trainer], course.steps), self.seed, course.beta
        )
        try:
            of_policy = policies.measure(path, held_out(), 4, self.seed)
            found = {"gain": of_policy.true_reward - of_the_language_model(), "kl": of_policy.kl}
            if course.source != GIVEN and (disagreeing := self._disagreeing()):
                found["prefers_better"] = policies.prefers_chosen(path, disagreeing)
        finally:
            shutil.rmtree(path)
        return found

    def _pairs(self) -> list[Pair]:
        if self.course.source == GIVEN:
            return given_pairs(TAUGHT)
        rows = self.guide.rows(self.course.labels)
        return pairs_of({name: rows[name] for name in list(rows)[:TAUGHT]}, SOURCES[self.course.source])

    def _disagreeing(self) -> list[Pair]:
        rows = self.guide.rows("guide")
        return [
            Pair(name, unguided["text"], guided["text"])
            for name in list(rows)[TAUGHT:]
            for guided, unguided in zip(rows[name][:OF_EACH], rows[name][OF_EACH:], strict=False)
            if truth(name, unguided["text"]) > truth(name, guided["text"])
        ]


@cache
def of_the_language_model() -> float:
    return policies.measure(str(sandbox.ensure().language), held_out(), 4, 0).true_reward
