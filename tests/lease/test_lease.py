"""One job at a time on a run directory: real processes, on a disk and on an S3 server of the test's own."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rgtg import storage
from rgtg.errors import UserError
from rgtg.lease import NAME, Lease, holder

RENEW, EXPIRES = 0.1, 1.5

HOLDER = f"""
import sys
from rgtg.lease import Lease
with Lease(sys.argv[1], lambda sentence: print("lost:", sentence, flush=True), {RENEW}, {EXPIRES}):
    print("held", flush=True)
    sys.stdin.read()
print("released", flush=True)
"""


@pytest.fixture(params=["disk", "s3"])
def uri(request, tmp_path):
    root = request.getfixturevalue("s3") if request.param == "s3" else str(tmp_path)
    return storage.join(root, "runs", "night")


@pytest.fixture
def start():
    """Start a process that holds the lease of a uri until its input closes."""
    processes = []

    def run(uri):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def take(uri, on_loss=lambda sentence: None):
    return Lease(uri, on_loss, RENEW, EXPIRES)


def test_the_second_job_is_refused_while_the_first_lives(uri, start):
    first = start(uri)
    with pytest.raises(UserError, match=f"process {first.pid} on .* is at work on the run"), take(uri):
        raise AssertionError("two jobs hold the lease")
    assert first.communicate()[0] == "released\n"
    with take(uri):
        assert storage.exists(storage.join(uri, NAME))
    assert not storage.exists(storage.join(uri, NAME))


def test_a_holder_of_this_machine_that_was_killed_holds_nobody_up(uri, start, caplog):
    caplog.set_level("INFO", logger="rgtg")
    first = start(uri)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    with take(uri):
        pass
    assert "waiting" not in caplog.text


def test_a_dead_holder_of_another_machine_is_waited_for_and_replaced(uri, caplog):
    caplog.set_level("INFO", logger="rgtg")
    gone = {"host": "elsewhere", "pid": 1, "began": 0, "process": "x", "id": "y", "count": 7}
    storage.write_bytes(storage.join(uri, NAME), json.dumps(gone).encode())
    with take(uri):
        pass
    assert "process 1 on elsewhere, since 1970" in caplog.text


def test_a_lease_that_is_torn_is_no_obstacle(uri):
    storage.write_bytes(storage.join(uri, NAME), b'{"host"')
    with take(uri):
        pass


def test_of_two_that_take_over_one_wins(uri):
    gone = {"host": "elsewhere", "pid": 1, "began": 0, "process": "x", "id": "y", "count": 7}
    storage.write_bytes(storage.join(uri, NAME), json.dumps(gone).encode())
    both, outcome = threading.Barrier(4), []

    def run():
        try:
            both.wait()
            with take(uri):
                outcome.append("held")
                both.wait(timeout=120)
        except UserError:
            outcome.append("refused")
            both.wait(timeout=120)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome) == ["held", "refused", "refused", "refused"]


def test_a_holder_hears_that_its_lease_is_lost(uri):
    lost = threading.Event()
    with take(uri, lambda sentence: lost.set()):
        storage.write_bytes(storage.join(uri, NAME), json.dumps({"host": "other", "pid": 2}).encode())
        assert lost.wait(timeout=120)
    assert b"other" in storage.read_bytes(storage.join(uri, NAME)), "what is another's is left alone"


def test_a_refused_job_leaves_no_empty_directory(tmp_path):
    uri = tmp_path / "runs" / "night"
    with take(str(uri)):
        assert uri.exists()
    assert not uri.exists()
    assert Path(tmp_path, "runs").exists()


def test_a_write_whose_answer_was_lost_is_still_ours(uri):
    lease = take(uri)
    with lease:
        lease._ended.set()
        lease._thread.join()
        old = lease.version
        lease.count = 1000
        assert lease._replace(old) is not None
        # The store tries the same write again, which finds the first one there.
        assert lease._replace(old) is not None
        storage.write_bytes(storage.join(uri, NAME), json.dumps({"host": "other", "pid": 2}).encode())
        assert lease._replace(old) is None


@pytest.mark.parametrize("root", ["/proc/nothing", "a-file"])
def test_where_nothing_can_be_written_is_a_mistake_and_no_failure(tmp_path, root):
    (tmp_path / "a-file").touch()
    with (
        pytest.raises(UserError, match=r"^cannot write to '.*night': (No such file|Not a directory|Permission)"),
        Lease(str(tmp_path / root / "night"), print),
    ):
        pass


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b'"x"',
        b"5",
        b"[" * 200_000,
        b"\xff\xfe",
        b'{"pid": 12, "ho',
        b'{"began": 1e30, "pid": 1e30}',
        b'{"began": "x", "host": 5, "process": []}',
        b'{"began": -1000000000000000000}',
        b'{"pid": ' + b"9" * 400 + b"}",
        json.dumps({"host": "a\x1b[2J\n" + "b" * 100_000}).encode(),
        b"x" * (1 << 20),
        json.dumps({"pid": 10**30, "process": f"{holder._here()} x"}).encode(),
    ],
    ids=range(13),
)
def test_a_file_that_holds_anything_is_taken_over(tmp_path, caplog, content):
    caplog.set_level("INFO", logger="rgtg")
    (tmp_path / NAME).write_bytes(content)
    with Lease(str(tmp_path), print, renew_s=0.01, expires_s=0.05):
        pass
    assert not (tmp_path / NAME).exists()
    said = caplog.text
    assert len(said) < 1000
    assert said.strip().isprintable()


def test_a_link_as_a_lease_leaves_the_file_behind_it(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / NAME).symlink_to(precious)
    with pytest.raises(UserError, match="cannot write to"), Lease(str(tmp_path / "run"), print, 0.01, 0.05):
        pass
    assert precious.read_text() == "mine"
