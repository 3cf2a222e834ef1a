"""Judges on Ray: actors that each hold a model and score completions by their texts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util import ActorPool

from pipelines.runtime import ray_session
from pipelines.runtime.fingerprints import check_unchanged
from pipelines.runtime.job_context import JobContext
from pipelines.runtime.resolved_config import on_gpu
from rgtg.chat import Prompt
from rgtg.evaluation.judge import Judge, load_judge

BATCH = 256  # completions of a call


@ray.remote
class JudgeActor:
    """Holds a judge that was loaded once."""

    def __init__(self, uri: str, what: str, options: dict[str, Any], digests: dict[str, str]) -> None:
        self.judge = load_judge(uri, what=what, **options)
        check_unchanged(digests)

    def score(self, prompts: list[Prompt], texts: list[str]) -> list[float]:
        return self.judge(prompts, texts)


@contextmanager
def judging(job: JobContext, uri: str, what: str, num_actors: int) -> Iterator[Judge]:
    """The model at `uri` as a judge of any number of texts, by `num_actors` actors on the device of the config."""
    ray_session.start(job.config)
    options = job.config.models.model_dump(include={"device", "dtype", "trust_remote_code"})
    arguments = (uri, what, options | {"day": job.directory.date}, {uri: job.digests.model(uri)})
    resources = {"num_gpus": 1 if on_gpu(job.config.models) else 0, "num_cpus": 1}
    actors = [JudgeActor.options(**resources).remote(*arguments) for _ in range(num_actors)]  # type: ignore[attr-defined]
    pool = ActorPool(actors)

    def judge(prompts: list[Prompt], texts: list[str]) -> list[float]:
        batches = [slice(start, start + BATCH) for start in range(0, len(texts), BATCH)]
        with ray_session.translate_ray_errors("judging"):
            found = pool.map(lambda actor, of: actor.score.remote(prompts[of], texts[of]), batches)
            return [score for scores in found for score in scores]

    try:
        yield judge
    finally:
        for actor in actors:
            ray.kill(actor)
