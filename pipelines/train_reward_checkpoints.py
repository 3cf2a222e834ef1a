"""Checkpoints of training: worker 0 writes them, and an attempt goes on from the newest one that is whole."""

import json
import pickle
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from ray import train
from ray.train.collective import broadcast_from_rank_zero

from rgtg import s3_filesystem, storage
from rgtg.errors import first_line
from rgtg.storage_errors import translate_errors
from rgtg.training.reward_trainer import RewardTrainer

STATE = "learner.pt"  # the file of a checkpoint that training goes on from
CURVE = "training.jsonl"  # the training curve, a line a point
# What reading a file raises that was cut off or overwritten, or that is no state at all. An OSError is of a disk or a
# store that does not answer, and is no reason to go back.
TORN = (EOFError, RuntimeError, ValueError, LookupError, TypeError, pickle.UnpicklingError)


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

    A worker may be killed while it writes one, and a disk may be full. Raises TransientError or UserError where one
    cannot be read.
    """
    chosen = state = None
    if rank == 0:
        places = found(place)
        for checkpoint in places:
            try:
                chosen, state = checkpoint, _state(checkpoint)
                break
            except TORN as error:
                say(f"the checkpoint {checkpoint!r} is broken ({first_line(error)}) and left aside")
        if places and not chosen:
            say("no checkpoint is whole: training begins anew")
    chosen = broadcast_from_rank_zero(chosen)
    return state if rank == 0 or chosen is None else _state(chosen)


def _state(checkpoint: str) -> dict[str, Any]:
    filesystem, path = storage.resolve(checkpoint)
    fetched = train.Checkpoint(path, filesystem).as_directory
    with translate_errors(f"cannot read the checkpoint {checkpoint!r}"), ExitStack() as stack:
        directory = s3_filesystem.retry_read(lambda: stack.enter_context(fetched()))
        state = torch.load(Path(directory, STATE), weights_only=True, map_location="cpu")
    state["totals"]  # LookupError: no state of ours
    return state


def report(trainer: RewardTrainer, metrics: dict[str, Any], kept: dict[str, Any], rank: int) -> None:
    """Report metrics with a checkpoint, which worker 0 writes; a collective call.

    `kept` are the `totals` and the `curve` of the log, which go on with training.
    """
    state = trainer.state() | kept
    if rank != 0:
        train.report(metrics, checkpoint=None)
        return
    with tempfile.TemporaryDirectory() as directory:
        torch.save(state, Path(directory, STATE))
        trainer.reward_model.save(Path(directory, "model"), state["model"])
        Path(directory, CURVE).write_text("".join(f"{json.dumps(point)}\n" for point in kept["curve"]))
        train.report(metrics, checkpoint=train.Checkpoint.from_directory(directory))
