"""Checkpoints of training: worker 0 writes them, and an attempt goes on from the newest one that is whole."""

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ray import train
from ray.train.collective import broadcast_from_rank_zero

from rgtg import storage
from rgtg.errors import first_line
from rgtg.training.reward_trainer import RewardTrainer

STATE = "learner.pt"  # the file of a checkpoint that training goes on from
# What reading a file raises that was cut off or overwritten, or that is no state at all.
TORN = (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, pickle.UnpicklingError)


def found(place: str) -> list[str]:
    """The places of all checkpoints below `place`, whole or torn, the newest first."""
    if not storage.exists(place):
        return []
    _, path = storage.resolve(place)
    names = [file.path[len(path) + 1 :] for file in storage.list_files(place, (STATE,))]
    places = [storage.join(place, name.rpartition("/")[0]) for name in names]
    return sorted(places, key=lambda checkpoint: (attempt(checkpoint), checkpoint), reverse=True)


def attempt(checkpoint: str) -> int:
    """The number of the attempt that wrote a checkpoint; 0 for those that stand where attempts had no number."""
    number = checkpoint.split("/")[-2]
    return int(number) if number.isdecimal() else 0


def newest_state(place: str, rank: int, say: Callable[[str], None]) -> dict[str, Any] | None:
    """What the newest whole checkpoint holds, None where there is none; the same one for all workers.

    A worker may be killed while it writes one, and a disk may be full.
    """
    chosen = state = None
    if rank == 0:
        for checkpoint in found(place):
            try:
                chosen, state = checkpoint, _state(checkpoint)
                break
            except TORN as error:
                say(f"the checkpoint {checkpoint!r} is broken ({first_line(error)}); going back to the one before")
    chosen = broadcast_from_rank_zero(chosen)
    return state if rank == 0 or chosen is None else _state(chosen)


def _state(checkpoint: str) -> dict[str, Any]:
    filesystem, path = storage.resolve(checkpoint)
    with train.Checkpoint(path, filesystem).as_directory() as directory:
        state = torch.load(Path(directory, STATE), weights_only=True, map_location="cpu")
    return {"totals": state["totals"], **state}


def report(learner: RewardTrainer, metrics: dict[str, Any], totals: dict[str, float], rank: int) -> None:
    """Report metrics with a checkpoint, which worker 0 writes; a collective call."""
    state = learner.state() | {"totals": totals}
    if rank != 0:
        train.report(metrics, checkpoint=None)
        return
    with tempfile.TemporaryDirectory() as directory:
        torch.save(state, Path(directory, STATE))
        learner.reward_model.save(Path(directory, "model"), state["model"])
        train.report(metrics, checkpoint=train.Checkpoint.from_directory(directory))
