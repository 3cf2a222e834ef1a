"""The Ray of a job: the cluster that it was submitted to, or an embedded one on this machine."""

import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.data import DataContext
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError
from ray.train import TrainingFailedError

from pipelines.runtime import gpus
from pipelines.runtime.job_log import log
from pipelines.runtime.resolved_config import on_gpu
from rgtg import storage_errors
from rgtg.config import Config
from rgtg.errors import TransientError, UserError, first_line

STARTS = 3
NO_PROGRESS_S = 2 * 3600  # a cluster that scales up from zero nodes may take long to provide the first GPU


def start(config: Config) -> None:
    """Connect to the cluster that this job runs on, else start Ray here, with CPUs and GPUs for every stage.

    Workers and actors hold CPUs (or GPUs). Two more CPUs are for reading and writing and for the filter of finished
    rows, without which a job would wait forever. Raises UserError where this machine has too few GPUs.
    """
    train, generate = config.train_reward, config.generate
    use_gpu = on_gpu(config.models)
    num_gpus = gpus.needed(config) if use_gpu else 0
    # An actor with a GPU also holds one CPU, by Ray's default.
    num_cpus = 2 + max(train.num_workers, generate.max_actors * (1 if use_gpu else generate.threads))
    if not ray.is_initialized():
        # Workers report through Progress; Ray's own messages stay in its log files.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")  # below 8 Ray warns about its own actors
        quiet: dict[str, Any] = {
            "logging_level": logging.ERROR,
            "log_to_driver": bool(os.environ.get("RGTG_RAY_LOGS")),
        }
        if os.environ.get("RAY_ADDRESS"):
            _init(address="auto", **quiet)
        else:
            # Ray itself would count a GPU that is split into MIG instances as one.
            own = {"num_cpus": max(cores(), num_cpus), "num_gpus": gpus.count(), "include_dashboard": False}
            _init(address="local", **own, **quiet)
    resources = ray.cluster_resources()
    lacking = [
        f"{need} {kind}s (it has {int(resources.get(kind, 0))})"
        for kind, need in (("CPU", num_cpus), ("GPU", num_gpus))
        if resources.get(kind, 0) < need
    ]
    if lacking and os.environ.get("RAY_ADDRESS"):
        log.info(f"waiting for the cluster to scale up to {' and '.join(lacking)}")
    elif lacking:
        without = use_gpu and not resources.get("GPU")
        remedy = "set models.device=cpu" if without else "ask for fewer actors or workers"
        raise UserError(f"this job needs {' and '.join(lacking)}; {remedy}")
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_S
    ray_log = logging.getLogger("ray.data")
    ray_log.setLevel(logging.ERROR)
    if not os.environ.get("RGTG_RAY_LOGS"):
        for handler in ray_log.handlers:
            if isinstance(handler, logging.StreamHandler):  # `translate_ray_errors` reports a failure, once
                handler.setLevel(logging.CRITICAL)


def _init(**options: Any) -> None:
    """Start Ray or connect to it. Raises TransientError after several failures, as on a machine that is too busy.

    Ray replaces the handler of SIGTERM, so it is restored here.
    """
    on_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    for attempt in range(1, STARTS + 1):
        try:
            ray.init(**options)
            break
        except Exception as error:  # Ray raises a plain Exception where a node is too slow
            ray.shutdown()
            if attempt == STARTS:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise TransientError(f"Ray failed to start {STARTS} times ({reason}); start the job again") from error
            log.info(f"Ray failed to start (attempt {attempt} of {STARTS}); retrying")
    if on_main:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def translate_ray_errors(what: str) -> Iterator[None]:
    """Translate Ray's exceptions into one sentence: the UserError of a worker, else the last line of its traceback.

    An error of a store keeps the store's words, whether a worker or the driver got it. Raises UserError or
    TransientError; the cause is Ray's exception where its traceback says more.
    """
    try:
        yield
    except (RayError, TrainingFailedError, ExecutionTimeoutError, OSError) as error:
        text = "\n".join(str(cause) for cause in _causes(error))
        if message := re.search(r"(?:UserError|RowError): (.+)", text):
            raise UserError(message[1]) from error
        if re.search(r"torch\S*\.OutOfMemoryError", text):
            raise UserError(
                f"{what}: a device ran out of memory; lower generate.slots or generate.max_prompt_tokens, or for "
                "training train_reward.micro_batch_size"
            ) from error
        if failure := storage_errors.failure_of_store(f"{what} failed", text):
            raise failure from None
        reason = re.search(r"TransientError: (.+)", text)
        raise TransientError(f"{what} failed: {reason[1] if reason else _last_words(text, error)}") from error


def _last_words(text: str, error: BaseException) -> str:
    """The last line that names an exception, which ends a traceback; Ray appends advice after it."""
    named = re.findall(r"^\s*((?:\w+\.)*\w*(?:Error|Exception|Panic|Exit|Interrupt)\w*(?:: .*)?)$", text, re.MULTILINE)
    named = named or re.findall(r"^((?:\w+\.)+[A-Z]\w*: .+)$", text, re.MULTILINE)  # any other name that has a module
    lines = named or [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else first_line(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def cores() -> int:
    """CPU cores that this process may use: by its affinity, or by its container's quota where that is less."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return count
    return count if quota == "max" else max(1, min(count, int(quota) // int(period)))
