"""The GPUs of this machine: how many torch sees, and how Ray assigns them to actors and workers."""

import math
import os
from typing import Any

import torch

from rgtg.config import Config
from rgtg.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"


def count() -> int:
    """The GPUs that this machine has for a job; each MIG instance counts as one.

    A process sees only the first MIG instance, so those are counted that the environment names.
    """
    named = [name for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    if torch.cuda.is_available() and named and all(name.strip().startswith("MIG-") for name in named):
        return len(named)
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def described() -> str:
    """One line for each GPU that this process sees, or the reason why it sees none."""
    visible = os.environ.get(VISIBLE)
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            return f"none (torch {torch.__version__} is built without CUDA)"
        return f"none ({VISIBLE} is {visible!r})" if visible is not None else "none"
    lines = [_line(torch.cuda.get_device_properties(i)) for i in range(torch.cuda.device_count())]
    if count() > len(lines):
        lines.append(f"and {count() - len(lines)} more MIG instances, one for each actor")
    elif visible is not None:
        lines.append(f"and no others, because {VISIBLE} is {visible!r}")
    return "\n".join(lines)


def needed(config: Config) -> int:
    """The least number of GPUs that the stages of a job need at once."""
    return max(config.train_reward.num_workers, math.ceil(config.generate.min_actors / _actors_per_gpu(config)))


def _actors_per_gpu(config: Config) -> int:
    """Actors that share one GPU. No actor is spread over two GPUs."""
    return int(1 / config.generate.gpus_per_actor)


def check(config: Config) -> str:
    """How actors share the GPUs of this machine, as one line. Raises UserError where there are too few."""
    generate, found = config.generate, count()
    if needed(config) > found:
        raise UserError(
            f"this machine has {found} GPU(s), and {config.train_reward.num_workers} training worker(s) and "
            f"{generate.min_actors} actor(s) of generate.gpus_per_actor {generate.gpus_per_actor:g} need "
            f"{needed(config)}; lower train_reward.num_workers, generate.min_actors or generate.gpus_per_actor"
        )
    most = found * _actors_per_gpu(config)
    actors = min(generate.max_actors, most)
    used = math.ceil(actors / _actors_per_gpu(config))
    idle = f"; generate.max_actors={most} would use all of them" if used < found else ""
    return f"{used} of {found} for at most {actors} actor(s){idle}"


def _line(properties: Any) -> str:
    return f"{properties.name} ({properties.total_memory / 2**30:.1f} GiB)"
