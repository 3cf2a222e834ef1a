"""Ray as the jobs use it: the cluster a job was submitted to, or an embedded one on this machine."""

import logging
import os
from typing import Any

import ray
from ray.data import DataContext

from pipelines.inputs import on_gpu
from rgtg import storage
from rgtg.config import Config
from rgtg.errors import UserError

NO_PROGRESS_S = 2 * 3600  # a cluster that grows from nothing may take long to give the first GPU


def start(config: Config) -> None:
    """Connect to the cluster this job runs on, else start Ray here, with room for every stage of `config`.

    Workers and actors hold CPUs (or GPUs); beside them one is for reading and writing and one for the filter of rows
    that are done, without which a job waits for ever. Raises UserError where this machine lacks the GPUs.
    """
    train, generate = config.train_reward, config.generate
    use_gpu = on_gpu(config.models)
    num_gpus = max(train.num_workers, generate.min_actors) if use_gpu else 0
    num_cpus = 2 + (0 if use_gpu else max(train.num_workers, generate.threads * generate.max_actors))
    if not ray.is_initialized():
        # Workers say what matters through Progress; the rest is in Ray's own log files.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")  # fewer, and Ray warns of its own actors
        quiet: dict[str, Any] = {
            "logging_level": logging.ERROR,
            "log_to_driver": bool(os.environ.get("RGTG_RAY_LOGS")),
        }
        if os.environ.get("RAY_ADDRESS"):
            ray.init(address="auto", **quiet)
        else:
            cores = os.cpu_count() or 1
            ray.init(address="local", num_cpus=max(cores, num_cpus), include_dashboard=False, **quiet)
    resources = ray.cluster_resources()
    lacking = [
        f"{need} {kind}s (it has {int(resources.get(kind, 0))})"
        for kind, need in (("CPU", num_cpus), ("GPU", num_gpus))
        if resources.get(kind, 0) < need
    ]
    if lacking and os.environ.get("RAY_ADDRESS"):
        print(f"waiting for the cluster to grow to {' and '.join(lacking)}", flush=True)
    elif lacking:
        raise UserError(f"this job needs {' and '.join(lacking)}; ask for fewer actors or workers")
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_S
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def check_shared(place: str) -> None:
    """Raises UserError for a local run directory on several machines: each would write to a disk of its own."""
    nodes = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) > 1 and storage.is_local(place) and not os.environ.get("RGTG_SHARED_DISK"):
        raise UserError(
            f"run.root is the local path {place!r} but the cluster has {len(nodes)} machines; use s3://, or set "
            "RGTG_SHARED_DISK=1 if every machine mounts it"
        )
