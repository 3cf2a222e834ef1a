"""An object store that is slow, busy, cut off, refuses or is not there: what helps, what is said, what is left."""

import os
import pickle
import signal

import boto3
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from pipelines import pairs, prompts
from rgtg import s3_filesystem, storage, table_files
from rgtg.digests import content_digest
from rgtg.errors import TransientError, UserError
from rgtg.input_files import InputFile, find
from rgtg.lease import Lease
from rgtg.node_copy import local_copy
from tests.faulty_s3 import TRANSIENT, always, every, no_faults

LARGE = bytes(range(256)) * (45 << 10)  # 11 MiB: in two parts


@pytest.fixture(autouse=True)
def brisk(monkeypatch):
    """As many attempts, and milliseconds between them."""
    monkeypatch.setattr(pafs, "AwsStandardS3RetryStrategy", pafs.AwsDefaultS3RetryStrategy)
    monkeypatch.setattr("random.random", lambda: 0.0)


@pytest.fixture
def calls(tmp_path):
    """Everything that can be done to a uri, by name."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"1")
    return {
        "read": storage.read_bytes,
        "list": storage.list_files,
        "tables": lambda uri: list(table_files.read_tables(uri)),
        "digest": content_digest,
        "copy": local_copy,
        "write": lambda uri: storage.write_bytes(uri, b"new"),
        "table": lambda uri: table_files.write_table(uri, pa.table({"x": [1]})),
        "make": lambda uri: storage.make_directory(f"{uri}/below"),
        "upload": lambda uri: storage.upload(tmp_path / "model", uri),
    }


def keys(s3):
    bucket = boto3.client("s3").list_objects_v2(Bucket=s3.removeprefix("s3://"))
    return [entry["Key"] for entry in bucket.get("Contents", [])]


def refused(kind, calls, uri):
    """What each call says, which is one sentence of this kind."""
    sentences = {}
    for name, call in calls.items():
        with pytest.raises(kind) as raised:
            call(uri)
        sentences[name] = str(raised.value)
        assert uri in sentences[name]
        assert "\n" not in sentences[name]
        assert raised.value.__cause__ is None or kind is UserError, "it would be printed as a traceback"
    return sentences


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_fault_in_the_first_of_three_requests_is_not_seen(fault, faulty, s3, tmp_path):
    faulty.plan = every(3, fault)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes(b"{}")  # shorter than a store's error
    storage.upload(tmp_path / "model", f"{s3}/model")
    storage.write_bytes(f"{s3}/model/weights", LARGE)
    table_files.write_table(f"{s3}/model/x.parquet", pa.table({"x": [1, 2]}))
    listed = [os.path.basename(file.path) for file in storage.list_files(f"{s3}/model")]
    assert listed == ["config.json", "weights", "x.parquet"]
    assert storage.read_bytes(f"{s3}/model/weights") == LARGE
    (table,) = table_files.read_tables(f"{s3}/model")
    assert table["x"].to_pylist() == [1, 2]
    copy = local_copy(f"{s3}/model")
    assert content_digest(copy) == content_digest(f"{s3}/model")
    storage.remove(f"{s3}/model")
    assert not storage.exists(f"{s3}/model")
    assert faulty.injected[fault] >= 5


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_lease_is_taken_renewed_and_given_back_through_faults(fault, faulty, s3):
    faulty.plan = every(3, fault)
    lost = []
    with Lease(f"{s3}/run", lost.append, renew_s=0.05, expires_s=60) as lease:
        while lease.count < 5:
            lease._ended.wait(0.01)
    assert not lost
    assert faulty.injected[fault] >= 2
    faulty.plan = no_faults
    assert keys(s3) == []


def test_a_lease_whose_reading_was_cut_off_is_read_again(faulty, s3):
    lease = Lease(f"{s3}/run", print)
    version = lease.file.replace(lease._content(), None)
    faulty.plan = lambda number, method, path: "reset-answer" if number == 1 else None
    found, current = lease.file.read()
    assert (found["id"], current) == (lease.holder["id"], version)
    faulty.plan = always("reset-answer")
    with pytest.raises(TransientError, match="try again later"):
        lease.file.read()


@pytest.mark.parametrize("fault", ["expired", "expired-403"])
def test_expired_credentials(fault, faulty, s3, calls):
    faulty.plan = always(fault)
    for sentence in refused(UserError, calls, f"{s3}/uri").values():
        assert sentence.endswith("check that the credentials in the environment are right and have not expired")
    assert faulty.requests <= 2 * len(calls), "trying again does not help"
    with pytest.raises(UserError, match="ExpiredToken"), Lease(f"{s3}/uri", print):
        raise AssertionError


def test_a_bucket_that_is_not_there(faulty, calls):
    uri = "s3://no-such-bucket/uri"
    assert not storage.exists(uri)
    for name, sentence in refused(UserError, calls, uri).items():
        assert "allow_bucket_creation" not in sentence
        if name in ("write", "table", "make", "upload"):
            assert "NO_SUCH_BUCKET" in sentence or "Bucket 'no-such-bucket' not found" in sentence
    with pytest.raises(UserError, match="NoSuchBucket"), Lease(uri, print):
        raise AssertionError


@pytest.mark.parametrize("fault", ["500", "503", "reset-upload"])
def test_a_store_that_is_down(fault, faulty, s3, calls):
    faulty.plan = always(fault)
    for sentence in refused(TransientError, calls, f"{s3}/uri").values():
        assert sentence.endswith("; try again later")
    assert faulty.requests <= 2 * s3_filesystem.ATTEMPTS * len(calls)
    with pytest.raises(TransientError, match="try again later"), Lease(f"{s3}/uri", print):
        raise AssertionError


def test_a_store_that_is_silent(faulty, s3, monkeypatch):
    monkeypatch.setattr(s3_filesystem, "ATTEMPTS", 2)
    monkeypatch.setattr(s3_filesystem, "SILENT_S", 1.0)
    faulty.plan = always("silent")
    with pytest.raises(TransientError, match="Less than 1 bytes/sec .*; try again later"):
        storage.read_bytes(f"{s3}/uri")
    assert faulty.requests <= 3


@pytest.mark.parametrize("data", [b"new", LARGE], ids=["small", "large"])
def test_an_upload_that_is_cut_off_leaves_what_was_there(data, faulty, s3):
    storage.write_bytes(f"{s3}/old", b"old")
    # Of a large one, the first part arrives.
    faulty.plan = lambda number, method, path: "reset-upload" if method == "PUT" and "Number=1&" not in path else None
    for name in ("old", "fresh"):
        with pytest.raises(TransientError):
            storage.write_bytes(f"{s3}/{name}", data)
    assert faulty.injected
    faulty.plan = no_faults
    assert keys(s3) == ["old"]
    assert storage.read_bytes(f"{s3}/old") == b"old"


def test_a_signal_in_the_middle_of_an_upload_does_not_publish_half_of_it(faulty, s3):
    class Stopped(BaseException):
        pass

    def stop(*_):
        raise Stopped

    def plan(number, method, path):
        if number == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    storage.write_bytes(f"{s3}/x", b"old")
    faulty.plan = plan
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(Stopped):
            storage.write_bytes(f"{s3}/x", b"new")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert storage.read_bytes(f"{s3}/x") == b"new"


def test_no_file_is_left_out_because_the_store_was_down(faulty, s3):
    """Unlike one that is broken."""
    whole = pa.table({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
    table_files.write_table(f"{s3}/in/a.parquet", whole)
    storage.write_bytes(f"{s3}/in/b.parquet", b"broken")
    _, path = storage.resolve(f"{s3}/in/a.parquet")
    file = InputFile(f"{s3}/in", path, 0)
    counts = prompts.take_in(find([f"{s3}/in"]), f"{s3}/out", max_error_rate=0.5)
    assert list(counts["skipped_files"]) == [path.replace("a.par", "b.par")]
    assert pairs._fault(file) is None
    faulty.plan = lambda number, method, path: "503" if path.endswith("/in/a.parquet") else None
    with pytest.raises(TransientError, match="cannot read"):
        prompts.take_in(find([f"{s3}/in"]), f"{s3}/out", max_error_rate=0.5)
    with pytest.raises(TransientError, match="cannot read"):
        pairs._fault(file)


def test_a_table_is_written_whole(s3):
    table_files.write_table(f"{s3}/x.parquet", pa.table({"x": ["é", None]}))
    filesystem, path = storage.resolve(f"{s3}/x.parquet")
    assert pq.read_table(path, filesystem=filesystem).to_pydict() == {"x": ["é", None]}


def test_a_worker_is_as_patient_as_the_driver(faulty, s3):
    """pyarrow's own file system loses its retries on the way to another process."""
    sent = pickle.loads(pickle.dumps(s3_filesystem.filesystem()))
    storage.write_bytes(f"{s3}/x", b"content")
    faulty.plan = lambda number, method, path: "503" if number < s3_filesystem.ATTEMPTS else None
    with sent.open_input_file(f"{s3.removeprefix('s3://')}/x") as file:
        assert file.read() == b"content"
