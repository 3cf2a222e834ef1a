"""Jobs on a Ray cluster that grows from no worker nodes and shrinks to none again: `make autoscaling`.

`generate` is submitted to a fake autoscaling cluster: Ray's own autoscaler, whose nodes are processes of this machine.
A node is taken away while it works. Other jobs fail, are cancelled, are stopped and are submitted again. It prints
what the cluster did over time and a table, compares rows with those of an undisturbed run, and exits with 1 where
anything is not as it should be.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event

os.environ |= {"RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1", "RGTG_SHARED_DISK": "1"}

import psutil
import pyarrow.parquet as pq
import torch
from ray.job_submission import JobInfo, JobSubmissionClient
from ray.util import get_node_ip_address
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from rgtg import sandbox
from tests.chaos import compare, rows

# 4 actors and the 2 CPUs beside them need every node: one that is taken away is missed.
MAX_NODES, NODE_CPUS, MAX_ACTORS = 3, 2, 4
IDLE_S = 30  # longer than an actor takes to load its models, or nodes come and go
PATIENCE_S = 900  # for a job, or for the cluster to come or go
GRACE_S = 30  # from `ray job stop` until the driver is gone; Ray kills it then
HEAD = "f" * 51 + "00000"  # the fake provider's own name for it
STOPPED = "interrupted; rerun the same command to resume"
WAITING = "waiting for the cluster to scale up"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")  # colours, progress bars

State = dict[psutil.Process, int]  # worker nodes, and how many actors that decode are on each


class FakeCluster:
    """A head without CPUs for work, and an autoscaler whose nodes are processes of this machine."""

    def __init__(self, temporary: Path) -> None:
        self.temporary = temporary
        gcs, dashboard, agent, client = _free_ports(4)
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        config = temporary / "fake.yaml"
        config.write_text(json.dumps(_cluster_config(f"{get_node_ip_address()}:{gcs}")))  # JSON is YAML
        options = [
            *("--head", "--block", "--num-cpus=0", "--disable-usage-stats", f"--object-store-memory={2 * 10**8}"),
            *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
            *(f"--ray-client-server-port={client}", f"--autoscaling-config={config}", f"--temp-dir={temporary}"),
        ]
        environment = {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "0",  # its fake provider wants a file that is not in the wheel
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
            "RAY_CLOUD_INSTANCE_ID": HEAD,
            "RAY_JOB_STOP_WAIT_TIME_S": str(GRACE_S),
        }
        with (temporary / "head.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*_ray(), "start", *options], stdout=log, stderr=log, env=os.environ | environment
            )

    def __enter__(self) -> "FakeCluster":
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(Exception):  # of many types while it is not up
                self.jobs = JobSubmissionClient(self.dashboard)
                self.jobs.list_jobs()
                return self
            Event().wait(1)
        self.__exit__()
        raise SystemExit(f"the head did not start: {(self.temporary / 'head.log').read_text()}")

    def __exit__(self, *exception: object) -> None:
        """End every process that descends from the head's, and no other."""
        ours = self._descendants()
        self.process.kill()
        kill(ours)
        self.process.wait()
        psutil.wait_procs(ours, 10)

    def _descendants(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def state(self) -> State:
        """The worker nodes, each a raylet, and how many actors that decode are on it."""
        found: State = {}
        for process in self._descendants():
            with suppress(psutil.Error):  # it ended just now
                if process.name() != "raylet" or process.environ().get("RAY_CLOUD_INSTANCE_ID") == HEAD:
                    continue
                if process.ppid() not in {node.pid for node in found}:  # else it is about to become a worker
                    titles = map(_title, process.children())
                    found[process] = sum(title.startswith("ray::MapWorker(MapBatches(Generator))") for title in titles)
        return found

    def drivers(self, run: str) -> list[psutil.Process]:
        """What runs on this cluster for a run of `generate`."""
        return [process for process in self._descendants() if f"run.id={run}" in _title(process)]

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ray job ...`, as a person or a scheduler calls it."""
        return subprocess.run(
            [*_ray(), "job", arguments[0], f"--address={self.dashboard}", *arguments[1:]],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    def submit(self, name: str, settings: list[str], *options: str) -> subprocess.CompletedProcess[str]:
        entrypoint = [sys.executable, "-m", "pipelines.generate", *settings]
        return self.command("submit", f"--submission-id={name}", *options, "--", *entrypoint)

    def ended(self, name: str) -> JobInfo | None:
        info = self.jobs.get_job_info(name)
        return info if info.status.is_terminal() else None


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):  # it ended just now
        return " ".join(process.cmdline())
    return ""


def _ray() -> list[str]:
    return [str(Path(sys.executable).with_name("ray"))]


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("", 0)) for _ in range(number)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports


def _cluster_config(gcs_address: str) -> dict:
    worker = {
        "resources": {"CPU": NODE_CPUS, "object_store_memory": 2 * 10**8},
        "node_config": {},
        "min_workers": 0,
        "max_workers": MAX_NODES,
    }
    return {
        "cluster_name": "fake",
        "max_workers": MAX_NODES,
        "upscaling_speed": 10,
        "idle_timeout_minutes": IDLE_S / 60,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": gcs_address,  # else its nodes ask port 6379
        },
        "auth": {},
        "available_node_types": {
            "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
            "worker": worker,
        },
        "head_node_type": "ray.head.default",
        **{name: {} for name in ("file_mounts", "docker")},
        **{name: [] for name in ("cluster_synced_files", "file_mounts_sync_files", "initialization_commands")},
        **{name: [] for name in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
        **{name: [] for name in ("head_start_ray_commands", "worker_start_ray_commands")},
    }


class Timeline:
    """What the cluster did, printed whenever it did something, and every so often while rows come in."""

    EVERY_S = 15

    def __init__(self, cluster: FakeCluster, folder: Path) -> None:
        self.cluster, self.folder, self.run = cluster, folder, ""
        self.began = self.since = time.monotonic()
        self.peak: Counter[str] = Counter()  # worker nodes, actors, and nodes with actors, at once
        self.sizes: dict[Path, int] = {}
        self.shape: object = None
        self.rows = 0
        print("\n| second | worker nodes | actors on them | rows committed | |\n|---:|---:|---|---:|---|")

    def look(self, event: str = "") -> State:
        state, now = self.cluster.state(), time.monotonic()
        spread = sorted(filter(None, state.values()), reverse=True)
        self.peak |= Counter(nodes=len(state), actors=sum(spread), spread=len(spread))
        shape, before = (len(state), spread), self.rows
        self.rows = self.committed()
        if event or shape != self.shape or (now - self.since > self.EVERY_S and self.rows != before):
            actors = " + ".join(map(str, spread)) or "0"
            print(f"| {now - self.began:.0f} | {len(state)} | {actors} | {self.rows} | {event} |", flush=True)
            self.since, self.shape = now, shape
        return state

    def committed(self) -> int:
        files = [f for f in (self.folder / self.run / "_checkpoint").glob("*.parquet") if ".pending." not in f.name]
        for file in files:
            if file not in self.sizes:
                with suppress(OSError):  # it was removed just now
                    self.sizes[file] = pq.read_metadata(file).num_rows
        return sum(self.sizes.get(file, 0) for file in files)

    def until(self, happened: Callable[[State], object], within_s: float = PATIENCE_S) -> bool:
        """Look on until `happened`; whether it did in time."""
        deadline = time.monotonic() + within_s
        while not happened(self.look()):
            if time.monotonic() > deadline:
                return False
            Event().wait(0.5)
        return True


class Trial:
    """Jobs of `generate` on the cluster, and what was not as it should be."""

    def __init__(self, cluster: FakeCluster, timeline: Timeline, folder: Path, settings: list[str]) -> None:
        self.cluster, self.timeline, self.folder, self.settings = cluster, timeline, folder, settings
        self.wrong: list[str] = []
        self.endings: list[str] = []
        self.comparisons: list[str] = []

    def check(self, right: object, sentence: str) -> None:
        if not right:
            print(f"WRONG: {sentence}", flush=True)
            self.wrong.append(sentence)

    def submit(self, name: str, run: str) -> None:
        self.timeline.run = run  # whose rows count from here on
        done = self.cluster.submit(name, [*self.settings, f"run.id={run}"], "--no-wait")
        self.check(done.returncode == 0, f"{name} was not submitted: {done.stdout}{done.stderr}")
        self.timeline.look(f"`{name}` is submitted")

    def refused(self, name: str, run: str) -> None:
        done = self.cluster.submit(name, [*self.settings, f"run.id={run}"], "--no-wait")
        said = done.stdout + done.stderr
        self.check(done.returncode == 1 and "already exists" in said, f"a second submit of {name} said: {said}")
        twice = Counter(job.submission_id for job in self.cluster.jobs.list_jobs())[name] != 1
        self.check(not twice and len(self.cluster.drivers(run)) <= 2, f"{name} runs twice")  # a shell, and its driver
        self.timeline.look(f"a second submit of `{name}` is refused")

    def ends(self, name: str, status: str, code: int | None, says: str) -> JobInfo | None:
        """Wait for the end of a job, and check everything that it leaves for people to read."""
        self.timeline.until(lambda _: self.cluster.ended(name))
        info = self.cluster.ended(name)
        self.check(info, f"{name} did not end in {PATIENCE_S} s")
        if not info:
            return None
        self.timeline.look(f"`{name}`: {info.status.value}")
        exit_code = "" if info.driver_exit_code is None else info.driver_exit_code
        self.endings.append(f"| `{name}` | {info.status.value} | {exit_code} |")
        self.check(info.status == status, f"{name} is {info.status}, not {status}")
        self.check(info.driver_exit_code == code, f"{name} ended with {info.driver_exit_code}, not {code}")
        log = self.cluster.jobs.get_job_logs(name)  # `ray job logs` puts lines of its own before it, in colours
        (self.folder / f"{name}.log").write_text(log)
        self.check(says in log, f"the log of {name} lacks {says!r}")
        self.check(not CONTROL.search(log), f"the log of {name} has control characters")
        self.check("Traceback" not in log, f"the log of {name} has a traceback")
        return info

    def stop(self, name: str, run: str) -> None:
        began = time.monotonic()
        done = self.cluster.command("stop", name)
        self.check(done.returncode == 0, f"`ray job stop {name}` said: {done.stdout}{done.stderr}")
        gone = self.timeline.until(lambda _: self.cluster.ended(name) and not self.cluster.drivers(run), GRACE_S)
        self.check(gone, f"{name} still runs {GRACE_S} s after it was stopped")
        self.timeline.look(f"`{name}` is stopped, in {time.monotonic() - began:.0f} s")
        self.ends(name, "STOPPED", None, STOPPED)
        said = self.cluster.command("status", name).stdout
        self.check("was stopped" in said, f"`ray job status` says {said}")

    def compared(self, run: str, what: str, expected: list[dict]) -> None:
        outcome = compare(rows(self.folder / run / "completions"), expected)
        counts = " | ".join(f"{outcome[key]:,}" for key in ("rows", "lost", "doubled", "different"))
        self.comparisons.append(f"| {what} | {counts} |")
        self.check(outcome == {"rows": len(expected), "lost": 0, "doubled": 0, "different": 0}, f"{run}: {outcome}")

    def back_to_none(self) -> None:
        none = self.timeline.until(lambda state: not state)
        self.check(none, f"nodes were left after {PATIENCE_S} s")
        self.timeline.look("no worker nodes" if none else "")


def disturbed(trial: Trial, expected: list[dict]) -> None:
    """From no nodes to the maximum, of which one is taken away; a second submit, before the end and after it."""
    timeline = trial.timeline
    trial.check(not timeline.look("the cluster stands"), "the cluster began with worker nodes")
    trial.submit("night", "night")

    def is_spread(state: State) -> bool:
        return len(state) == MAX_NODES and sum(map(bool, state.values())) > 1 and timeline.rows > len(expected) / 8

    timeline.until(lambda state: is_spread(state) or trial.cluster.ended("night"))
    state = timeline.look()
    trial.check(is_spread(state) and timeline.rows < len(expected), f"work did not spread: {timeline.peak}")
    if state:
        taken = max(state, key=lambda node: state[node])
        kill([*taken.children(recursive=True), taken])
        timeline.look(f"a node is taken away, with {state[taken]} of the actors")
    trial.refused("night", "night")
    trial.ends("night", "SUCCEEDED", 0, "generate (pargs): ")
    trial.refused("night", "night")
    trial.compared("night", "a node is taken away; submitted three times", expected)


def failing(trial: Trial) -> None:
    """A mistake in the settings, and what `ray job submit` says of it at the end."""
    done = trial.cluster.submit("mistaken", [*trial.settings, "run.id=mistaken", "generate.method=nonsense"])
    trial.check(done.returncode == 1, f"a job that failed: `ray job submit` exits with {done.returncode}")
    trial.ends(
        "mistaken", "FAILED", 2, "error: the setting 'generate.method' is wrong: the method 'nonsense' is unknown"
    )
    said = trial.cluster.command("status", "mistaken").stdout
    trial.check("failed with exit code 2," in said, f"`ray job status` says {said}")
    trial.check(not (trial.folder / "mistaken").exists(), "a job that was refused left a run directory")


def stopped(trial: Trial, expected: list[dict]) -> None:
    """Cancelled while it waits at no nodes, stopped while it works, and then done: three jobs of one run."""
    timeline = trial.timeline
    trial.submit("stopped-1", "stopped")
    timeline.until(lambda _: WAITING in trial.cluster.jobs.get_job_logs("stopped-1"))
    trial.stop("stopped-1", "stopped")
    trial.submit("stopped-2", "stopped")
    timeline.until(lambda _: timeline.rows > len(expected) / 4 or trial.cluster.ended("stopped-2"))
    trial.stop("stopped-2", "stopped")
    trial.check(0 < timeline.rows < len(expected), f"it was stopped after {timeline.rows} rows of {len(expected)}")
    trial.submit("stopped-3", "stopped")
    trial.ends("stopped-3", "SUCCEEDED", 0, "generate: resuming from committed rows")
    trial.compared("stopped", "cancelled at no nodes, stopped at work, then submitted again", expected)


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def reward_model(language: Path, target: Path) -> str:
    """One that was not trained: it gives rewards, and costs what another one costs."""
    torch.manual_seed(0)
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it says that the head is new
    AutoModelForSequenceClassification.from_pretrained(language, num_labels=1).save_pretrained(target)
    AutoTokenizer.from_pretrained(language).save_pretrained(target)
    return str(target)


def undisturbed(folder: Path, settings: list[str]) -> list[dict]:
    """The rows of the same settings on this machine alone."""
    command = [sys.executable, "-m", "pipelines.generate", *settings, "run.id=whole", "generate.max_actors=1"]
    with (folder / "whole.log").open("wb") as log:
        subprocess.run(command, stdout=log, stderr=log, check=True)
    return rows(folder / "whole" / "completions")


def tried(folder: Path, samples: int, short: bool) -> Trial:
    """Everything of the above, on a cluster of its own; the short form leaves out what takes long."""
    settings = [
        f"run.root={folder}",
        f"models.reward={reward_model(sandbox.ensure().language, folder / 'reward_model')}",
        "models.device=cpu",
        f"generate.samples={samples}",
        "generate.block_rows=8",
        "generate.threads=1",
        "generate.min_actors=1",
        f"generate.max_actors={MAX_ACTORS}",
    ]
    expected = undisturbed(folder, settings)
    temporary = Path(tempfile.mkdtemp(prefix="ra", dir="/tmp"))  # sockets have short names
    with FakeCluster(temporary) as cluster:
        trial = Trial(cluster, Timeline(cluster, folder), folder, settings)
        if not short:
            disturbed(trial, expected)
        failing(trial)
        trial.back_to_none()
        stopped(trial, expected)
        if not short:
            trial.back_to_none()
    shutil.rmtree(temporary, ignore_errors=True)
    return trial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="only jobs that fail, or are stopped and go on")
    parser.add_argument("--samples", type=int, default=12, help="completions of a prompt: more of them, longer runs")
    parser.add_argument("--keep", type=Path, help="a folder for runs and logs; by default it is removed")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and so by way of the cluster's end
    folder = (given.keep or Path(tempfile.mkdtemp(prefix="autoscaling"))).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    trial = tried(folder, given.samples, given.short)
    print("\n| submission id | ended as | exit code |\n|---|---|---:|", *trial.endings, sep="\n")
    print("\n| run | rows | lost | doubled | different |\n|---|---:|---:|---:|---:|", *trial.comparisons, sep="\n")
    peak, seconds = trial.timeline.peak, time.monotonic() - trial.timeline.began
    print(
        f"\nat most {peak['nodes']} worker nodes, and {peak['actors']} actors on {peak['spread']} of them at once; "
        f"{seconds:.0f} s; {len(trial.wrong)} checks failed"
    )
    if not given.keep:
        shutil.rmtree(folder)
    sys.exit(1 if trial.wrong else 0)


if __name__ == "__main__":
    main()
