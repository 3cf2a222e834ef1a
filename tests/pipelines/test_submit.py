"""The recipe for `ray job submit` in cluster/README.md, as written but for ports, folders and the size of the job."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def recipe() -> str:
    """The commands under "First on this machine"."""
    page = (ROOT / "cluster" / "README.md").read_text()
    found = re.search(r"## First on this machine.*?```bash\n(.*?)```", page, re.DOTALL)
    assert found
    return found[1]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.mark.slow
@pytest.mark.ray
def test_the_recipe_for_a_head_on_this_machine_works(tmp_path, language_dir, write_parquet):
    """In a shell of its own, with a home of its own."""
    gcs, dashboard, agent = (free_port() for _ in range(3))
    folder = tempfile.mkdtemp(prefix="rgtg-", dir="/tmp")  # short: names of sockets are bounded
    columns = {"prompt": [f"p{i}:" for i in range(48)], "chosen": ["xx"] * 48, "rejected": ["y"] * 48}
    pairs = write_parquet("pairs.parquet", **columns)
    job = [
        f"run.id=try-1 models.language={language_dir} train_reward.pairs={pairs}",
        f"generate.prompts={write_parquet('prompts.parquet', prompt=['a', 'b'])} generate.max_new_tokens=8",
        "train_reward.eval_fraction=0.3 train_reward.batch_size=8 preferences.truncated=keep",
    ]
    ports = f"--port={gcs} --dashboard-port={dashboard} --dashboard-agent-listen-port={agent}"
    replaced = {
        "$PWD/.venv/bin": str(Path(sys.executable).parent),
        "http://127.0.0.1:8265": f"http://127.0.0.1:{dashboard}",
        "ray start --head": f"ray start --head {ports} --temp-dir={folder}",
        "run.id=try-1": " ".join(job),
        '"run.root=$PWD/runs"': f"run.root={tmp_path}/runs",
        "ray stop ": "echo not ",  # other Rays live here
    }
    script = recipe()
    for old, new in replaced.items():
        assert old in script
        script = script.replace(old, new)
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert (tmp_path / "runs" / "try-1" / "_SUCCESS").exists(), done.stdout + done.stderr
    finally:
        end_those_of(folder)
        shutil.rmtree(folder, ignore_errors=True)


def end_those_of(folder: str) -> None:
    """Kill the processes of the Ray whose files lie in `folder`."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if folder.encode() in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
        except (OSError, ValueError):
            continue
