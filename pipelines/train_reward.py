"""Fit the reward model on partial sequences, by Ray Train: data-parallel workers, checkpoints, resume."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train
from ray.actor import ActorHandle
from ray.data import DataContext, ExecutionOptions
from ray.data.expressions import col
from ray.train.torch import TorchTrainer, get_device

from pipelines import checkpoints, pairs, ray_session
from pipelines.inputs import on_gpu, resolved
from pipelines.progress import Progress
from pipelines.run_directory import RunDirectory, check_unchanged, model_digest, versions_that_round
from rgtg import object_store, storage, table_files
from rgtg.config import Config, TrainReward
from rgtg.errors import UserError
from rgtg.methods import head_of
from rgtg.models.reward import RewardModel
from rgtg.training.reward_trainer import RewardTrainer, StepResult

STAGE = "train_reward"
LOG_EVERY_S = 5.0
OUTPUT_FREE = (
    "num_workers",
    "strategy",
    "micro_batch_size",
    "gradient_checkpointing",
    "eval_every",
    "threads",
    "max_failures",
    "checkpoint_every",
    "pairs",
    "eval_pairs",
)


def run(config: Config) -> RunDirectory:
    """The stage: pairs to reward_model/. The held-out accuracy by prefix length goes to the manifest."""
    config = resolved(config, pairs=True)
    directory = RunDirectory(config)
    fit(config, directory, STAGE, directory.path("reward_model"))
    return directory


def reward_of(config: Config, directory: RunDirectory) -> str:
    """The reward model that the config describes, trained in this run unless it is.

    One run may have several: its own, and for comparisons others, which bear the name of their objective and head.
    """
    name = _name(config.train_reward.objective, config.train_reward.head)
    own = directory.is_done(STAGE) and name == _name_of(directory, STAGE)
    stage, target = (STAGE, "reward_model") if own else (f"{STAGE}_{name}", f"reward_model_{name}")
    fit(config, directory, stage, directory.path(target))
    return directory.path(target)


def accuracies(directory: RunDirectory) -> dict[str, dict[str, Any]]:
    """Held-out accuracy of every reward model of the run, by its name; the run's own first."""
    stages = [stage for stage in directory.manifest["stages"] if stage.startswith(STAGE) and directory.is_done(stage)]
    return {_name_of(directory, stage): directory.counts(stage)["accuracy"] for stage in sorted(stages)}


def _name_of(directory: RunDirectory, stage: str) -> str:
    inputs = directory.manifest["stages"][stage]["inputs"]
    return _name(inputs["train_reward.objective"], inputs["train_reward.head"])


def _name(objective: str, head: str | None) -> str:
    return objective if head in (None, head_of(objective)) else f"{objective}-{head}"


def fit(config: Config, directory: RunDirectory, stage: str, target: str) -> None:
    """Train one reward model in `directory` as `stage`, and save it at `target`."""
    settings = config.train_reward
    init = settings.init or config.models.language
    RewardModel.check(init, "train_reward.init", config.models.trust_remote_code, head=settings.head_kind)
    use_gpu = on_gpu(config.models)
    pairs.run(config, directory, init)
    inputs = {
        "pairs": directory.fingerprint_of(pairs.STAGE),
        "train_reward.init": model_digest(init),
        "run.seed": config.run.seed,
        **{
            f"train_reward.{name}": value
            for name, value in settings.model_dump(exclude={"init", *OUTPUT_FREE}).items()
        },
        "train_reward.head": settings.head_kind,
    }
    place = directory.path("_train", stage)
    alike = versions_that_round() | {"train_reward.num_workers": settings.num_workers}  # each has its share
    found = checkpoints.found(place)
    if directory.begin(stage, inputs, alike=alike, has_work=bool(found)) == "done":
        return
    begun = time.monotonic()
    ray_session.start(config)
    num_train = directory.counts(pairs.STAGE)["train"]
    per_worker = num_train // settings.num_workers  # equal shards: the remainder of a division is left out
    if not per_worker:
        raise UserError(f"there are {num_train} pairs to train on, fewer than the {settings.num_workers} workers")
    steps_per_epoch = math.ceil(per_worker / (settings.batch_size // settings.num_workers))
    print(
        f"{stage}: {settings.objective} objective, {num_train} pairs x {settings.epochs} epochs = "
        f"{steps_per_epoch * settings.epochs} steps of {settings.batch_size} pairs on {settings.num_workers} "
        f"{'GPU' if use_gpu else 'CPU'} worker(s)",
        flush=True,
    )
    progress = Progress(stage)
    # Each attempt has a place of its own: Ray would resume from the list that it keeps there, and that may be torn.
    attempt = str(1 + max((checkpoints.attempt(checkpoint) for checkpoint in found), default=0))
    filesystem, path = storage.resolve(place)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "settings": settings.model_dump(),
            "init": init,
            "digests": {init: inputs["train_reward.init"]},
            "trust_remote_code": config.models.trust_remote_code,
            "seed": config.run.seed,
            "steps_per_epoch": steps_per_epoch,
            "progress": progress.actor,
            "checkpoints": place,
        },
        scaling_config=train.ScalingConfig(
            num_workers=settings.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"GPU": 1} if use_gpu else {"CPU": 1},
        ),
        run_config=train.RunConfig(
            name=attempt,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=train.FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=train.CheckpointConfig(num_to_keep=2),
        ),
        datasets={split: _dataset(directory.path("pairs"), split) for split in ("train", "eval")},
        # In the order of the files, so that a worker that goes on in the middle of an epoch sees the pairs it has not.
        dataset_config=train.DataConfig(
            execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False
        ),
    )
    with ray_session.explained("training"), progress:
        result = trainer.fit()
    # The last report of the workers has both.
    assert result.checkpoint is not None
    assert result.metrics is not None
    fetched = result.checkpoint.as_directory
    with ray_session.explained("training"), ExitStack() as stack:
        checkpoint = object_store.patiently(lambda: stack.enter_context(fetched()))
        storage.upload(Path(checkpoint, "model"), target)
    directory.finish(stage, result.metrics, time.monotonic() - begun)
    storage.remove(directory.path("_train", stage))
    print(
        f"{stage}: held-out accuracy by part of the response {result.metrics['accuracy']['by_fraction']}", flush=True
    )


def _dataset(place: str, split: str) -> "ray.data.Dataset":
    paths, filesystem = table_files.check_tables(place), storage.resolve(place)[0]
    dataset = ray.data.read_parquet(paths, filesystem=filesystem, partitioning=None).filter(expr=col("split") == split)
    return dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids", "common"])


def _worker(config: dict[str, Any]) -> None:
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
    learner = RewardTrainer(reward_model, settings, num_steps, device)
    log = _Log(num_steps, config["progress"])
    if state := checkpoints.newest_state(config["checkpoints"], rank, log.say):
        learner.restore(state)
        log.totals = state["totals"]
    share = settings.batch_size // context.get_world_size()
    shard = train.get_dataset_shard("train")
    while learner.step < num_steps:
        epoch, done = divmod(learner.step, config["steps_per_epoch"])
        for number, batch in enumerate(_batches(shard, share, seed + epoch, config["steps_per_epoch"])):
            if number < done:  # of an epoch that an earlier worker began
                continue
            result = learner.train_step(batch)
            if rank == 0:
                log.step(learner.step, result)
            last = learner.step == num_steps
            if settings.eval_every and learner.step % settings.eval_every == 0 and not last:
                accuracy = _evaluate(learner, settings.micro_batch_size or share)
                if rank == 0:
                    log.say(f"step {learner.step}, accuracy by part of the response {accuracy['by_fraction']}")
            if learner.step % settings.checkpoint_every == 0 or last:  # the last, since evaluation may fail too
                checkpoints.report(learner, {"step": learner.step}, log.totals, rank)
    metrics = {
        "step": learner.step,
        "accuracy": _evaluate(learner, settings.micro_batch_size or share),
        **log.totals,
    }
    checkpoints.report(learner, metrics, log.totals, rank)


def _evaluate(learner: RewardTrainer, batch_size: int) -> dict[str, Any]:
    shard = train.get_dataset_shard("eval")
    return learner.evaluate(
        pairs.to_pairs(batch) for batch in shard.iter_batches(batch_size=batch_size, drop_last=False)
    )


def _batches(shard: Any, share: int, seed: int, num_batches: int) -> Iterator[list]:
    """An epoch's batches of one worker; pairs/ is shuffled, and every epoch shuffles what is near anew.

    Exactly `num_batches`, since workers step together: one whose shard is short by some rows ends on empty batches.
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
    """Progress of worker 0 as lines, and the totals for the manifest, which a checkpoint keeps."""

    def __init__(self, num_steps: int, progress: ActorHandle) -> None:
        self.progress, self.num_steps = progress, num_steps
        self.began, self.last, self.pairs, self.steps = time.monotonic(), 0.0, 0, 0  # of this start
        # Prefix pairs that counted, and those masked for identical tokens; the loss is a moving average.
        self.totals: dict[str, float] = {"prefix_pairs": 0, "identical_prefix_pairs": 0}

    def step(self, step: int, result: StepResult) -> None:
        self.steps += 1
        self.pairs += result.pairs
        self.totals["prefix_pairs"] += result.prefixes
        self.totals["identical_prefix_pairs"] += result.masked
        self.totals["loss"] = 0.95 * self.totals.get("loss", result.loss) + 0.05 * result.loss
        now = time.monotonic()
        if now - self.last > LOG_EVERY_S or step == self.num_steps:
            self.last = now
            seconds = now - self.began
            self.say(
                f"step {step}/{self.num_steps}, loss {self.totals['loss']:.4f}, gradient {result.grad_norm:.2f}, "
                f"{self.pairs / seconds:.0f} pairs/s, {seconds / self.steps * (self.num_steps - step):.0f} s left"
            )

    def say(self, line: str) -> None:
        self.progress.log.remote(line)


if __name__ == "__main__":
    from pipelines.launch import main

    main(run)
