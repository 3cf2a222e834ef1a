"""The generate job on a real Ray: nothing lost, nothing doubled, the same rows however the work is cut."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from pipelines import generate
from rgtg import storage
from rgtg.decoding.decoder import Decoder
from rgtg.errors import UserError

pytestmark = pytest.mark.ray

PROMPTS = [f"prompt {'x' * (i % 7)} number {i}" for i in range(22)]


@pytest.fixture
def job(configure, write_parquet, reward_dir, ray_here):
    """A config of the job over `prompts`, guided by the tiny reward model."""

    def make(prompts=PROMPTS, **changes):
        columns = {"prompt": list(prompts), "topic": [f"topic of {prompt}" for prompt in prompts]}
        place = write_parquet(f"prompts-{len(prompts)}-{prompts[0]}.parquet", **columns)
        return configure(**{"models.reward": reward_dir, "generate.prompts": place, **changes})

    return make


def test_rows_are_those_of_the_library(job, read_rows, language_dir, reward_dir):
    directory = generate.run(job(**{"generate.unguided_samples": 1, "generate.opposed_samples": 1}))
    rows = read_rows(directory.path("completions"))
    decoder = Decoder.load(language_dir, reward_dir, "pargs", device="cpu", slots=6)
    asked = {"samples": 2, "unguided_samples": 1, "opposed_samples": 1, "max_new_tokens": 8}
    expected = dict(zip(PROMPTS, decoder.generate(PROMPTS, **asked), strict=True))
    assert {row["prompt"] for row in rows} == set(PROMPTS)
    assert len(rows) == len(PROMPTS)
    for row in rows:
        assert row["error"] is None
        assert row["method"] == "pargs"
        assert row["topic"] == f"topic of {row['prompt']}"
        for written, completion in zip(row["completions"], expected[row["prompt"]], strict=True):
            exact = asdict(completion)
            exact |= {name: float(np.float32(exact[name])) for name in ("reward", "score")}
            exact["token_rewards"] = [float(np.float32(reward)) for reward in exact["token_rewards"]]
            assert written == exact


def test_the_same_rows_whatever_the_actors_blocks_and_order(job, read_rows):
    one = generate.run(job(**{"run.id": "one", "generate.block_rows": 3}))
    reversed_prompts = PROMPTS[::-1]
    two = generate.run(
        job(
            reversed_prompts,
            **{"run.id": "two", "generate.block_rows": 8, "generate.max_actors": 2, "generate.min_actors": 2},
        )
    )
    assert read_rows(one.path("completions")) == read_rows(two.path("completions"))


def test_bad_rows_are_written_with_their_error(job, read_rows):
    prompts = ["good", None, "long " * 100, "also good", ""]
    with pytest.raises(UserError, match=r"1 of 5 prompts .*rate is 0\.1 \(1 times such as 'the prompt is null'\)"):
        generate.run(job(prompts))  # the input is to blame, and no model was loaded
    with pytest.raises(UserError, match=r"2 of 5 prompts have an error, and generate\.max_error_rate is 0\.3"):
        generate.run(job(prompts, **{"generate.max_error_rate": 0.3}))  # a night of errors is no success
    directory = generate.run(job(prompts, **{"generate.max_error_rate": 0.5}))
    rows = {row["topic"].removeprefix("topic of "): row for row in read_rows(directory.path("completions"))}
    assert len(rows) == 5
    assert rows["None"]["error"] == "the prompt is null"
    assert rows["None"]["completions"] is None
    assert "leaves no room for a completion in the context of 128" in rows["long " * 100]["error"]
    with pytest.raises(UserError, match=r"2 of 5 prompts have an error, and generate\.max_error_rate is 0\.3"):
        generate.run(job(prompts, **{"generate.max_error_rate": 0.3}))  # nor is what was accepted under a higher rate
    assert not directory.is_done("preferences")
    for prompt in ("good", "also good", ""):  # an empty prompt starts from the BOS
        assert rows[prompt]["error"] is None
        assert len(rows[prompt]["completions"]) == 2
    assert directory.counts("generate")["errors"] == 2


def test_without_a_reward_model_rewards_are_null(job, read_rows, configure, write_parquet):
    place = write_parquet("plain.parquet", prompt=["one"])
    directory = generate.run(configure(**{"generate.prompts": place, "generate.method": "unguided"}))
    [row] = read_rows(directory.path("completions"))
    assert [(c["reward"], c["token_rewards"]) for c in row["completions"]] == [(None, None)] * 2
    assert all(c["logprob"] < 0 for c in row["completions"])


def test_a_finished_run_is_not_done_again_and_other_settings_are_refused(job):
    directory = generate.run(job())
    files = {file: file.stat().st_mtime_ns for file in Path(directory.path("completions")).iterdir()}
    generate.run(job())
    assert files == {file: file.stat().st_mtime_ns for file in Path(directory.path("completions")).iterdir()}
    with pytest.raises(
        UserError, match=r"generate\.beta null \(now 1\.5\).*start another run \(--new-run, or another run\.id\)"
    ):
        generate.run(job(**{"generate.beta": 1.5}))


def test_only_new_prompts_of_input_that_grew_are_completed(configure, write_parquet, reward_dir, read_rows, ray_here):
    def config(**changes):
        place = str(Path(write_parquet("asked/a.parquet", prompt=PROMPTS[:9])).parent)
        return configure(**{"models.reward": reward_dir, "generate.prompts": place, **changes})

    directory = generate.run(config())
    before = {file.name: file.read_bytes() for file in Path(directory.path("completions")).iterdir()}
    # Beside the first file, and before it by name; some of it is known already.
    write_parquet("asked/0.parquet", prompt=[*PROMPTS[12:], *PROMPTS[:2]])
    with pytest.raises(UserError, match=r"generate\.prompts"):
        generate.run(config())
    directory = generate.run(config(**{"generate.incremental": True}))
    after = {file.name: file.read_bytes() for file in Path(directory.path("completions")).iterdir()}
    assert before.items() <= after.items(), "what was there is as it was"
    rows = read_rows(directory.path("completions"))
    assert sorted(row["prompt"] for row in rows) == sorted([*PROMPTS[:9], *PROMPTS[12:]])
    whole = generate.run(config(**{"run.id": "whole"}))
    assert rows == read_rows(whole.path("completions"))

    write_parquet("asked/0.parquet", prompt=["another text in the same file"])
    with pytest.raises(UserError, match=r"generate\.prompts"):
        generate.run(config(**{"generate.incremental": True}))
    write_parquet("asked/0.parquet", prompt=[*PROMPTS[12:], *PROMPTS[:2]])
    with pytest.raises(UserError, match=r"generate\.beta"):
        generate.run(config(**{"generate.incremental": True, "generate.beta": 3.0}))


def test_a_file_that_a_kill_tore_is_written_anew(job, read_rows, tmp_path):
    """As signal 9 leaves it: the list of its ids is pending, and the file is half there."""
    whole = read_rows(generate.run(job(**{"run.id": "whole"})).path("completions"))
    config = job(**{"run.id": "torn"})
    directory = generate.run(config)
    manifest = storage.read_json(directory.path("manifest.json"))
    manifest["stages"]["generate"]["status"] = "begun"
    storage.write_json(directory.path("manifest.json"), manifest)
    torn = sorted(Path(directory.path("completions")).glob("*.parquet"))[0]
    ids = Path(directory.path("_checkpoint"), torn.name.rsplit("-", 1)[0] + ".parquet")
    ids.rename(ids.with_suffix(".pending.parquet"))
    torn.write_bytes(torn.read_bytes()[:-40])
    assert read_rows(generate.run(config).path("completions")) == whole


KILLS_ITSELF = """
import os, signal, sys, threading
from pathlib import Path
from rgtg import config_file
from pipelines import generate

def watch(directory):
    while len(list(Path(directory).glob("*.parquet"))) < 3:
        threading.Event().wait(0.02)
    os.kill(os.getpid(), signal.SIGKILL)

settings = config_file.load(None, sys.argv[1:])
threading.Thread(target=watch, args=[settings.run.directory + "/completions"], daemon=True).start()
generate.run(settings)
"""


def processes_with(setting):
    """Ids of living processes with a setting in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if setting.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def actors_here():
    """Ids of the actor processes of this test's own Ray."""
    raylets = {info.process.pid for info in ray._private.worker.global_worker.node.all_processes["raylet"]}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in raylets and (process / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                found.append(int(process.name))
    return found


def test_an_actor_that_is_killed_is_replaced_and_every_row_is_there_once(job, read_rows):
    prompts = [f"a longer night, prompt {i}" for i in range(60)]
    settings = {"generate.max_new_tokens": 24, "generate.block_rows": 2}
    whole = read_rows(generate.run(job(prompts, **{"run.id": "whole", **settings})).path("completions"))
    config = job(prompts, **{"run.id": "killed", **settings})
    committed, killed, ended = Path(config.run.directory, "_checkpoint"), [], threading.Event()

    def kill():
        while not killed and not ended.wait(0.02):
            if len(list(committed.glob("*.parquet"))) >= 3:
                killed.extend(actors_here())
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        directory = generate.run(config)
    finally:
        ended.set()
        thread.join()
    assert killed
    assert read_rows(directory.path("completions")) == whole


def test_lists_without_files_and_files_without_lists_are_removed(tmp_path):
    """What workers of a killed job leave that still wrote while the next one cleaned up."""
    target, checkpoint = tmp_path / "completions", tmp_path / "_checkpoint"
    for directory, names in (
        (target, ["a_000000-0.parquet", "a_000002-0.parquet", "a_000003-0.parquet"]),
        (checkpoint, ["a_000000.parquet", "a_000001.parquet", "a_000002.pending.parquet"]),
    ):
        directory.mkdir()
        for name in names:
            (directory / name).write_bytes(b"")
    generate._reconcile(str(target), str(checkpoint))
    assert [file.name for file in (*target.iterdir(), *checkpoint.iterdir())] == [
        "a_000000-0.parquet",
        "a_000000.parquet",
    ]


def test_completions_are_bit_equal_when_the_driver_is_killed_and_the_job_started_again(job, read_rows, tmp_path):
    prompts = [f"a longer night, prompt {i}" for i in range(60)]
    settings = {"generate.max_new_tokens": 24, "generate.block_rows": 2}
    whole = read_rows(generate.run(job(prompts, **{"run.id": "whole", **settings})).path("completions"))

    config = job(prompts, **{"run.id": "killed", **settings})
    overrides = [
        f"{section}.{key}={value}"
        for section, values in config.model_dump(exclude_defaults=True).items()
        for key, value in values.items()
    ]
    own_ray = tempfile.mkdtemp(prefix="r", dir="/tmp")  # sockets have short names
    victim = subprocess.Popen(
        [sys.executable, "-c", KILLS_ITSELF, *overrides],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "RAY_TMPDIR": own_ray},
    )
    assert victim.wait(timeout=1000) == -signal.SIGKILL
    while left := processes_with(f"RAY_TMPDIR={own_ray}"):  # its Ray outlives it for a moment, and still writes
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    shutil.rmtree(own_ray)
    # By the lists of ids: the signal may have torn a file of completions.
    lists = [file for file in (tmp_path / "runs/killed/_checkpoint").iterdir() if ".pending." not in file.name]
    assert 0 < sum(pq.read_metadata(file).num_rows for file in lists) < len(prompts)

    resumed = generate.run(config)
    assert read_rows(resumed.path("completions")) == whole
