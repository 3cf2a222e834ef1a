"""Kill anything, at random moments, by signal 9, and count what is lost: `make chaos`. It prints the README's table.

The real commands run on a Ray cluster of several nodes on this machine. Actors, worker nodes, training workers and
drivers are killed while they work, and drivers are started again, until the job is done. Then its rows are compared
with those of an undisturbed run.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

os.environ |= {"RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1", "RGTG_SHARED_DISK": "1"}

import pyarrow.parquet as pq
import torch
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from rgtg import sandbox, storage

PATIENCE_S = 60  # for one commit; then the next fault comes anyway


class Job:
    """A command that is started again after every death of its driver, until it ends well."""

    def __init__(self, command: str, settings: list[str], log: Path, address: str) -> None:
        self.arguments = [sys.executable, "-m", "pipelines.cli", command, *settings]
        self.log, self.starts = log.open("ab"), 0
        self.environment = {**os.environ, "RAY_ADDRESS": address}
        self.start()

    def start(self) -> None:
        self.starts += 1
        self.process = subprocess.Popen(self.arguments, stdout=self.log, stderr=self.log, env=self.environment)

    def kill(self) -> bool:
        self.process.kill()
        self.process.wait()
        self.start()
        return True

    def ends(self, within_s: float) -> bool:
        """Whether it ends well; a start that failed is followed by another, as of a scheduler that tries again."""
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        if code == 2:
            raise SystemExit(f"{self.arguments} was refused; see {self.log.name}")
        if code:
            self.start()
        return code == 0


def workers(title: str, made: Cluster) -> list[int]:
    """Workers of our own Ray whose title begins so."""
    nodes = [made.head_node, *made.worker_nodes]
    raylets = {info.process.pid for node in nodes for info in node.all_processes["raylet"]}
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in raylets and (entry / "cmdline").read_bytes().startswith(title.encode()):
                found.append(int(entry.name))
    return found


@contextmanager
def cluster(num_nodes: int, cpus: int) -> Iterator[Cluster]:
    """A Ray of its own, with a head and worker nodes."""
    temporary = tempfile.mkdtemp(prefix="rc", dir="/tmp")  # sockets have short names
    os.environ["RAY_TMPDIR"] = temporary
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    for _ in range(num_nodes):
        made.add_node(num_cpus=cpus)
    try:
        yield made
    finally:
        made.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)


def kill_one(pids: list[int], rng: random.Random) -> bool:
    with suppress(ProcessLookupError):
        if pids:
            os.kill(rng.choice(pids), signal.SIGKILL)
            return True
    return False


def replace_node(made: Cluster, rng: random.Random, cpus: int) -> bool:
    """A machine dies, and the autoscaler brings another."""
    made.remove_node(rng.choice(sorted(made.worker_nodes, key=id)), allow_graceful=False)
    made.add_node(num_cpus=cpus)
    return True


def disturb(
    job: Job, faults: dict[str, Callable[[], bool]], moved: Callable[[], int], rng: random.Random, most: int
) -> Counter:
    """Inject faults at random moments of a job's life until it is done; how many of each kind."""
    kinds, injected, seen = sorted(faults), Counter(), moved()
    calm = rng.uniform(0, 3)
    since = time.monotonic()
    while not job.ends(0.2):
        waited = time.monotonic() - since
        # Something must have moved since the last fault, or nothing would ever end; then any moment will do.
        if injected.total() < most and ((moved() > seen and waited > calm) or waited > PATIENCE_S):
            kind = rng.choice(kinds)
            if faults[kind]():
                injected[kind] += 1
                print(f"  killed {kind} ({injected.total()}) after {moved()} commits", flush=True)
            seen, calm, since = moved(), rng.uniform(0, 3), time.monotonic()
    return injected


def rows(place: Path) -> list[dict]:
    """Every row of every visible file; a torn file fails here."""
    files = [file for file in sorted(place.iterdir()) if not file.name.startswith((".", "_"))]
    return sorted((row for file in files for row in pq.read_table(file).to_pylist()), key=lambda row: row["prompt_id"])


def compare(found: list[dict], expected: list[dict]) -> dict[str, int]:
    ids, wanted = [row["prompt_id"] for row in found], {row["prompt_id"]: row for row in expected}
    return {
        "rows": len(found),
        "lost": len(wanted.keys() - set(ids)),
        "doubled": len(ids) - len(set(ids)),
        "different": sum(wanted.get(row["prompt_id"]) != row for row in found),
    }


def generation(folder: Path, reward: str, kills: int, rng: random.Random) -> tuple[Counter, dict[str, int]]:
    """`generate`, whose actors, nodes and drivers die."""
    cpus, injected, outcome = 2, Counter(), Counter()
    settings = [
        f"run.root={folder}",
        f"models.reward={reward}",
        "models.device=cpu",
        "generate.samples=4",
        "generate.block_rows=4",
        "generate.slots=8",
        "generate.min_actors=2",
        "generate.max_actors=2",
    ]
    with cluster(2, cpus) as made:
        whole = Job("generate", [*settings, "run.id=whole"], folder / "whole.log", made.address)
        disturb(whole, {}, lambda: 0, rng, 0)
        expected = rows(folder / "whole" / "completions")
        while injected.total() < kills:
            run = f"disturbed-{injected.total()}"
            job = Job("generate", [*settings, f"run.id={run}"], folder / f"{run}.log", made.address)
            faults = {
                "actor": lambda: kill_one(workers("ray::MapWorker", made), rng),
                "worker node": lambda: replace_node(made, rng, cpus),
                "driver": job.kill,
            }
            committed = folder / run / "_checkpoint"
            moved = lambda at=committed: len(list(at.glob("*.parquet"))) if at.exists() else 0  # noqa: E731
            injected += disturb(job, faults, moved, rng, kills - injected.total())
            outcome.update(compare(rows(folder / run / "completions"), expected))
    return injected, dict(outcome)


def training(folder: Path, kills: int, rng: random.Random) -> tuple[Counter, dict[str, int]]:
    """`train-reward`, whose workers and drivers die; the weights against those of an undisturbed run."""
    injected, outcome = Counter(), Counter()
    settings = [
        f"run.root={folder}",
        "models.device=cpu",
        "train_reward.epochs=1",
        "train_reward.checkpoint_every=10",
        "train_reward.max_failures=100",
        "train_reward.threads=1",
    ]
    with cluster(1, 2) as made:
        whole = Job("train-reward", [*settings, "run.id=trained"], folder / "trained.log", made.address)
        disturb(whole, {}, lambda: 0, rng, 0)
        expected = load_file(folder / "trained" / "reward_model" / "model.safetensors")
        while injected.total() < kills:
            run = f"trained-{injected.total()}"
            job = Job("train-reward", [*settings, f"run.id={run}"], folder / f"{run}.log", made.address)
            faults = {
                "training worker": lambda: kill_one(workers("ray::RayTrainWorker", made), rng),
                "training driver": job.kill,
            }
            checkpoints = folder / run / "_train"
            moved = lambda at=checkpoints: len(list(at.glob("*/checkpoint_*/learner.pt"))) if at.exists() else 0  # noqa: E731
            injected += disturb(job, faults, moved, rng, kills - injected.total())
            found = load_file(folder / run / "reward_model" / "model.safetensors")
            same = found.keys() == expected.keys() and all(
                torch.allclose(found[name], expected[name], atol=1e-5) for name in found
            )
            outcome.update({"rows": 1, "lost": 0, "doubled": 0, "different": int(not same)})
    return injected, dict(outcome)


def stages(folder: Path, rng: random.Random) -> tuple[Counter, dict[str, int]]:
    """`nightly`, whose driver dies after each of its stages."""
    settings = [f"run.root={folder}", "models.device=cpu", "train_reward.epochs=1", "nightly.compare_objectives=false"]
    with cluster(1, 3) as made:
        whole = Job("nightly", [*settings, "run.id=night"], folder / "night.log", made.address)
        disturb(whole, {}, lambda: 0, rng, 0)
        job = Job("nightly", [*settings, "run.id=nights"], folder / "nights.log", made.address)

        def finished() -> int:
            manifest = folder / "nights" / "manifest.json"
            found = storage.read_json(str(manifest))["stages"] if manifest.exists() else {}
            return sum(stage["status"] == "done" for stage in found.values())

        injected, seen = Counter(), 0
        while not job.ends(0.05):
            if (now := finished()) > seen:
                seen = now
                injected["driver between stages"] += job.kill()
        expected, found = (rows(folder / name / "completions") for name in ("night", "nights"))
    return injected, compare(found, expected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="during generation; a third as many during training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for runs and logs; by default it is removed")
    given = parser.parse_args()
    rng, began = random.Random(given.seed), time.monotonic()
    folder = given.keep or Path(tempfile.mkdtemp(prefix="chaos"))
    folder.mkdir(parents=True, exist_ok=True)
    sandbox.ensure()
    done = {"train-reward": training(folder, max(2, given.kills // 3), rng)}
    reward = str(folder / "trained" / "reward_model")
    done["generate"] = generation(folder, reward, given.kills, rng)
    done["nightly"] = stages(folder, rng)
    print("\n| job | killed | rows | lost | doubled | different |\n|---|---|---|---|---|---|")
    for name, (injected, outcome) in done.items():
        kills = ", ".join(f"{number} x {kind}" for kind, number in sorted(injected.items()))
        counts = " | ".join(f"{outcome[key]:,}" for key in ("rows", "lost", "doubled", "different"))
        print(f"| `{name}` | {kills} | {counts} |")
    print(f"\n{time.monotonic() - began:.0f} s; seed {given.seed}")
    if not given.keep:
        shutil.rmtree(folder)
    failed = any(outcome[key] for _, outcome in done.values() for key in ("lost", "doubled", "different"))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
