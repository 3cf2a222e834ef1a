"""The worker of `train_reward.py`: training from the newest intact checkpoint, evaluation, reports."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from ray import train
from ray.actor import ActorHandle
from ray.data import DataContext
from ray.train.torch import get_device

from pipelines import pairs
from pipelines import train_reward_checkpoints as checkpoints
from pipelines.runtime import ray_session
from pipelines.runtime.fingerprints import check_unchanged
from rgtg.models.reward import RewardModel
from rgtg.training.reward_trainer import RewardTrainer, StepResult
from rgtg.training_settings import TrainReward

LOG_EVERY_S = 5.0
CURVE_POINTS = 1000  # of training.jsonl; at most twice as many


def worker(config: dict[str, Any]) -> None:
    """One training worker, run by Ray Train."""
    settings, seed = TrainReward(**config["settings"]), config["seed"]
    context = train.get_context()
    rank, device = context.get_world_rank(), get_device()
    torch.manual_seed(seed)
    torch.set_num_threads(settings.threads or max(1, ray_session.cores() // context.get_local_world_size()))
    DataContext.get_current().enable_progress_bars = False

    reward_model = RewardModel.load(
        config["init"],
        head=settings.head_kind,
        what="train_reward.init",
        trust_remote_code=config["trust_remote_code"],
    )
    check_unchanged(config["digests"])
    num_steps = config["steps_per_epoch"] * settings.epochs
    trainer = RewardTrainer(reward_model, settings, num_steps, device)
    log = _Log(num_steps, config["progress"])
    if state := checkpoints.newest_state(config["checkpoints"], rank, log.line):
        trainer.restore(state)
        log.totals, log.curve = state["totals"], state.get("curve", [])
    share = settings.batch_size // context.get_world_size()
    shard = train.get_dataset_shard("train")
    while trainer.step < num_steps:
        epoch, done = divmod(trainer.step, config["steps_per_epoch"])
        for number, batch in enumerate(_batches(shard, share, seed + epoch, config["steps_per_epoch"])):
            if number < done:  # an earlier worker trained on this part of the epoch
                continue
            result = trainer.train_step(batch)
            if rank == 0:
                log.step(trainer.step, result)
            last = trainer.step == num_steps
            if settings.eval_every and trainer.step % settings.eval_every == 0 and not last:
                accuracy = _evaluate(trainer, settings.micro_batch_size or share)
                if rank == 0:
                    log.line(f"step {trainer.step}, accuracy by fraction of the response {accuracy['by_fraction']}")
            if trainer.step % settings.checkpoint_every == 0 or last:  # the evaluation may fail
                checkpoints.report(trainer, {"step": trainer.step}, log.kept(), rank)
    accuracy = _evaluate(trainer, settings.micro_batch_size or share)
    reward_model.score_way = accuracy["score"]  # in the config.json that is saved now
    metrics = {"step": trainer.step, "accuracy": accuracy, **log.totals}
    checkpoints.report(trainer, metrics, log.kept(), rank)


def _evaluate(trainer: RewardTrainer, batch_size: int) -> dict[str, Any]:
    shard = train.get_dataset_shard("eval")
    return trainer.evaluate(
        pairs.to_pairs(batch) for batch in shard.iter_batches(batch_size=batch_size, drop_last=False)
    )


def _batches(shard: Any, share: int, seed: int, num_batches: int) -> Iterator[list]:
    """The batches of one worker in one epoch. Rows of pairs/ are shuffled; each epoch reshuffles nearby rows.

    Yields exactly `num_batches`, since workers step together: a shard that is shorter by some rows ends in empty
    batches.
    """
    batches = shard.iter_batches(
        batch_size=share, drop_last=False, local_shuffle_buffer_size=16 * share, local_shuffle_seed=seed
    )
    produced = 0
    for batch in batches:
        if produced < num_batches:
            yield pairs.to_pairs(batch)
            produced += 1
    for _ in range(num_batches - produced):
        yield []


class _Log:
    """The log of worker 0: lines of progress, and totals and a curve, which checkpoints keep."""

    def __init__(self, num_steps: int, progress: ActorHandle) -> None:
        self.progress, self.num_steps = progress, num_steps
        self.began, self.last, self.pairs, self.steps = time.monotonic(), 0.0, 0, 0  # of this attempt
        # Prefix pairs in the loss, and those masked for identical tokens. `loss` is a moving average.
        self.totals: dict[str, float] = {"prefix_pairs": 0, "identical_prefix_pairs": 0}
        self.curve: list[dict[str, float]] = []

    def step(self, step: int, result: StepResult) -> None:
        self.steps += 1
        self.pairs += result.pairs
        self.totals["prefix_pairs"] += result.prefixes
        self.totals["identical_prefix_pairs"] += result.masked
        self.totals["loss"] = 0.95 * self.totals.get("loss", result.loss) + 0.05 * result.loss
        now = time.monotonic()
        if step % max(1, self.num_steps // CURVE_POINTS) == 0 or step == self.num_steps:
            rate = round(self.pairs / max(now - self.began, 1e-9), 1)
            self.curve.append(
                {"step": step, "loss": result.loss, "grad_norm": result.grad_norm, "pairs_per_second": rate}
            )
        if now - self.last > LOG_EVERY_S or step == self.num_steps:
            self.last = now
            seconds = now - self.began
            self.line(
                f"step {step}/{self.num_steps}, loss {self.totals['loss']:.4f}, gradient {result.grad_norm:.2f}, "
                f"{self.pairs / seconds:.0f} pairs/s, {seconds / self.steps * (self.num_steps - step):.0f} s left"
            )

    def kept(self) -> dict[str, Any]:
        """The part that a checkpoint keeps."""
        return {"totals": self.totals, "curve": self.curve}

    def line(self, line: str) -> None:
        """Have the driver print a line."""
        self.progress.log.remote(line)
