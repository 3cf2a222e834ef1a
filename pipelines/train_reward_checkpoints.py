"""Checkpoints of training: worker 0 writes them, and an attempt resumes from the newest intact one."""

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

STATE = "learner.pt"  # the state that training resumes from
CURVE = "training.jsonl"  # the training curve, one point per line
# Raised by reading a file that is cut off, overwritten or not a state at all. An OSError comes from a disk or a store
# that does not answer, which is no reason to fall back to an older checkpoint.
TORN = (EOFError, RuntimeError, ValueError, LookupError, TypeError, pickle.UnpicklingError)


def found(uri: str) -> list[str]:
    """The paths of all checkpoints below `uri`, intact or torn, the newest first."""
    if not storage.exists(uri):
        return []
    _, path = storage.resolve(uri)
    names = [file.path[len(path) + 1 :] for file in storage.list_files(uri, (STATE,))]
    checkpoints = [storage.join(uri, name.rpartition("/")[0]) for name in names]
    return sorted(checkpoints, key=lambda checkpoint: (attempt(checkpoint), checkpoint), reverse=True)


def attempt(checkpoint: str) -> int:
    """The number of the attempt that wrote a checkpoint; 0 for one of a version that did not number attempts."""
    number = checkpoint.split("/")[-2]
    return int(number) if number.isdecimal() else 0


def newest_state(uri: str, rank: int, report_line: Callable[[str], None]) -> dict[str, Any] | None:
    """The state in the newest intact checkpoint below `uri`, the same for all workers; None where there is none.

    Torn checkpoints are skipped: a worker may be killed while it writes one, and a disk may be full. Raises
    TransientError or UserError where a disk or store does not deliver one.
    """
    chosen = state = None
    if rank == 0:
        checkpoints = found(uri)
        for checkpoint in checkpoints:
            try:
                chosen, state = checkpoint, _state(checkpoint)
                break
            except TORN as error:
                report_line(f"skipping the checkpoint {checkpoint!r}, which is broken ({first_line(error)})")
        if checkpoints and not chosen:
            report_line("no checkpoint is intact; training starts from the beginning")
    chosen = broadcast_from_rank_zero(chosen)
    return state if rank == 0 or chosen is None else _state(chosen)


def _state(checkpoint: str) -> dict[str, Any]:
    filesystem, path = storage.resolve(checkpoint)
    fetched = train.Checkpoint(path, filesystem).as_directory
    with translate_errors(f"cannot read the checkpoint {checkpoint!r}"), ExitStack() as stack:
        directory = s3_filesystem.retry_read(lambda: stack.enter_context(fetched()))
        state = torch.load(Path(directory, STATE), weights_only=True, map_location="cpu")
    state["totals"]  # a LookupError if it is not a state of this trainer
    return state


def report(trainer: RewardTrainer, metrics: dict[str, Any], kept: dict[str, Any], rank: int) -> None:
    """Report metrics with a checkpoint, which worker 0 writes; a collective call.

    `kept` holds the `totals` and the `curve` of the log, which a resumed training continues.
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
