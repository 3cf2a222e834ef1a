"""Fit the reward model on partial sequences, on Ray Train: data-parallel workers, checkpoints, resume."""

import math
import threading
import time
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
from ray import train
from ray.data import ExecutionOptions
from ray.data.expressions import col
from ray.train.torch import TorchTrainer

from pipelines import input_checks, pairs, summary
from pipelines import train_reward_checkpoints as checkpoints
from pipelines.runtime import ray_session
from pipelines.runtime.fingerprints import Inputs, versions_that_round
from pipelines.runtime.job_context import JobContext
from pipelines.runtime.job_log import log
from pipelines.runtime.progress import Progress
from pipelines.runtime.resolved_config import on_gpu
from pipelines.runtime.run_directory import RunDirectory
from pipelines.train_reward_worker import worker
from rgtg import config_section, s3_filesystem, storage, table_files
from rgtg.config import Config
from rgtg.errors import UserError
from rgtg.evaluation.stats import share_error
from rgtg.methods import reward_name
from rgtg.models.loading import load_config
from rgtg.models.memory import backbone_parameters
from rgtg.models.reward import RewardModel
from rgtg.report import warnings
from rgtg.report.card import model_card
from rgtg.training.learning_rate import default_learning_rate
from rgtg.training_settings import TrainReward

STAGE = "train_reward"


def run(config: Config) -> RunDirectory:
    """The stage alone, as a command."""
    input_checks.check(config, pairs=True)
    job = JobContext.open(config, pairs=True)
    run_stage(job)
    summary.write(job.directory)
    return job.directory


def run_stage(job: JobContext) -> None:
    """Train reward_model/ on the pairs. The manifest gets the held-out accuracy by prefix length."""
    fit(job, STAGE, job.directory.path("reward_model"))


def reward_of(job: JobContext) -> str:
    """The path of the reward model that the config describes, which is trained now if the run has none such.

    For comparisons a run may have several besides its own, named by their objective and head.
    """
    settings, directory = job.config.train_reward, job.directory
    name = reward_name(settings.objective, settings.head)
    own = directory.is_done(STAGE) and name == summary.name_of(directory, STAGE)
    stage, target = (STAGE, "reward_model") if own else (f"{STAGE}_{name}", f"reward_model_{name}")
    fit(job, stage, directory.path(target))
    return directory.path(target)


def fit(job: JobContext, stage: str, target: str) -> None:
    """Train a reward model as `stage` of the run and save it to `target`."""
    config, directory, settings = job.config, job.directory, job.config.train_reward
    init = settings.init or config.models.language
    RewardModel.check(init, "train_reward.init", config.models.trust_remote_code, head=settings.head_kind)
    use_gpu = on_gpu(config.models)
    settings = _with_rate(settings, init, config.models.trust_remote_code, directory.inputs_of(stage))
    pairs.run_stage(job, init)
    inputs = _inputs(job, settings, init)
    attempts = directory.path("_train", stage)
    alike = versions_that_round() | {"train_reward.num_workers": settings.num_workers}  # of the batches
    found = checkpoints.found(attempts)
    state = directory.begin(stage, inputs, alike=alike, has_work=bool(found))
    if state == "done":
        return
    if state == "resume" and not found:
        log.info(f"{stage}: no checkpoint was written before it stopped; training starts from the beginning")
    begun = time.monotonic()
    ray_session.start(config)
    num_train = directory.counts(pairs.STAGE)["train"]
    per_worker = num_train // settings.num_workers  # equal shards; the remainder is dropped
    if not per_worker:
        raise UserError(
            f"there are only {num_train} training pairs for {settings.num_workers} workers; lower "
            "train_reward.num_workers, or give more pairs"
        )
    steps_per_epoch = math.ceil(per_worker / (settings.batch_size // settings.num_workers))
    log.info(
        f"{stage}: {settings.objective} objective, {num_train} pairs x {settings.epochs} epochs = "
        f"{steps_per_epoch * settings.epochs} steps of {settings.batch_size} pairs, learning rate "
        f"{settings.learning_rate:g}, on {settings.num_workers} "
        f"{'GPU' if use_gpu else 'CPU'} worker(s)"
    )
    progress = Progress(stage)
    task = {
        "settings": settings.model_dump(),
        "init": init,
        "digests": {init: inputs["train_reward.init"]},
        "trust_remote_code": config.models.trust_remote_code,
        "seed": config.run.seed,
        "steps_per_epoch": steps_per_epoch,
        "progress": progress.actor,
        "checkpoints": attempts,
    }
    # Each attempt has its own directory: in an old one Ray would resume from its own list, which may be torn.
    attempt = str(1 + max((checkpoints.attempt(checkpoint) for checkpoint in found), default=0))
    trainer = _trainer(task, settings, directory.path("pairs"), use_gpu=use_gpu, attempt=attempt)
    with ray_session.translate_ray_errors("training"), progress:
        result = _fit(trainer)
    # The last report of the workers sets both.
    assert result.checkpoint is not None
    assert result.metrics is not None
    fetched = result.checkpoint.as_directory
    with ray_session.translate_ray_errors("training"), ExitStack() as stack:
        checkpoint = s3_filesystem.retry_read(lambda: stack.enter_context(fetched()))
        storage.upload(Path(checkpoint, "model"), target)
        card = model_card(
            config.model_copy(update={"train_reward": settings}), result.metrics, directory.counts(pairs.STAGE)
        )
        storage.write_bytes(storage.join(target, "README.md"), card.encode())
        curve = Path(checkpoint, checkpoints.CURVE).read_bytes()
    storage.write_bytes(directory.path(stage.replace(STAGE, "training") + ".jsonl"), curve)
    directory.finish(stage, result.metrics, time.monotonic() - begun)
    storage.remove(directory.path("_train", stage))
    accuracy = result.metrics["accuracy"]
    error = share_error(accuracy["by_fraction"].get("1.0", 0.5), accuracy["pairs"].get("full", 0))
    by_part = ", ".join(f"{float(part):.0%}: {value:.3f}" for part, value in accuracy["by_fraction"].items())
    by_score = ", ".join(f"{way}: {value:.3f}" for way, value in accuracy["by_score"].items())
    log.info(f"{stage}: held-out accuracy of whole responses by score  {by_score}; {accuracy['score']} is kept")
    log.info(f"{stage}: held-out accuracy by fraction of the response  {by_part} ± {error:.3f}")
    if weak := warnings.of_training(result.metrics):
        log.warning(f"{stage}: WARNING: {weak}")


def _with_rate(settings: TrainReward, init: str, trust_remote_code: bool, before: Inputs) -> TrainReward:
    """With the learning rate, which is that of an earlier attempt `before` where the config names none."""
    rate = settings.learning_rate or before.get("train_reward.learning_rate")
    if rate is None:
        model = load_config(init, "train_reward.init", trust_remote_code=trust_remote_code)
        rate = default_learning_rate(backbone_parameters(model, trust_remote_code), lora=bool(settings.lora_rank))
    return settings.model_copy(update={"learning_rate": rate})


def _inputs(job: JobContext, settings: TrainReward, init: str) -> Inputs:
    """All inputs that the trained weights depend on."""
    own = config_section.inputs_of(settings)
    del own["init"]  # replaced by its digest
    return {
        "pairs": job.directory.fingerprint_of(pairs.STAGE),
        "train_reward.init": job.digests.model(init),
        "run.seed": job.config.run.seed,
        **{f"train_reward.{name}": value for name, value in own.items()},
        "train_reward.head": settings.head_kind,
    }


def _trainer(
    task: dict[str, Any], settings: TrainReward, pairs_uri: str, *, use_gpu: bool, attempt: str
) -> TorchTrainer:
    """Ray's trainer; every worker gets the same `task`."""
    filesystem, path = storage.resolve(task["checkpoints"])
    return TorchTrainer(
        worker,
        train_loop_config=task,
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
        datasets={split: _dataset(pairs_uri, split) for split in ("train", "eval")},
        # In the order of the files, so that a worker that resumes in the middle of an epoch sees the remaining pairs.
        dataset_config=train.DataConfig(
            execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False
        ),
    )


def _fit(trainer: TorchTrainer) -> train.Result:
    """Run the trainer in a thread: in the main one Ray takes the handler of Ctrl-C for itself, and keeps it."""
    fitted: Future[train.Result] = Future()

    def run() -> None:
        try:
            fitted.set_result(trainer.fit())
        except BaseException as error:
            fitted.set_exception(error)

    # A daemon, so that a job that is stopped ends while the thread still waits for its workers.
    threading.Thread(target=run, daemon=True, name="ray train").start()
    return fitted.result()


def _dataset(uri: str, split: str) -> "ray.data.Dataset":
    paths, filesystem = table_files.check_tables(uri), storage.resolve(uri)[0]
    dataset = ray.data.read_parquet(paths, filesystem=filesystem, partitioning=None).filter(expr=col("split") == split)
    return dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids", "common"])


if __name__ == "__main__":
    from pipelines.runtime.launch import main

    main(run)
