"""Training resumes from the newest whole checkpoint, whatever became of the others."""

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ray import train

from pipelines import train_reward
from pipelines import train_reward_checkpoints as checkpoints
from rgtg.errors import TransientError, UserError


@pytest.fixture
def said(monkeypatch) -> list[str]:
    monkeypatch.setattr(checkpoints, "broadcast_from_rank_zero", lambda value: value)
    return []


def put(place: Path, step: int) -> Path:
    place.mkdir(parents=True)
    torch.save({"step": step, "totals": {}}, place / "learner.pt")
    return place


def newest(place: Path, said: list[str]) -> int | None:
    state = checkpoints.newest_state(str(place), 0, said.append)
    return state and state["step"]


def test_the_newest_of_all_attempts_is_taken(tmp_path, said):
    assert newest(tmp_path / "nothing", said) is None
    put(tmp_path / "checkpoint_2026-11-21", 1)  # where attempts had no place of their own
    assert newest(tmp_path, said) == 1
    put(tmp_path / "2" / "checkpoint_2026-11-19", 2)
    put(tmp_path / "10" / "checkpoint_2026-11-17", 3)
    put(tmp_path / "10" / "checkpoint_2026-11-18", 4)
    assert newest(tmp_path, said) == 4
    assert [Path(place).parent.name for place in checkpoints.found(str(tmp_path))] == ["10", "10", "2", tmp_path.name]
    assert not said


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def noise(file: Path) -> None:
    file.write_bytes(b"\x80\x02" + bytes(range(256)) * 8)


def zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def other(file: Path) -> None:
    torch.save([1, 2], file)


def a_pickle(file: Path) -> None:
    torch.save({"step": 3, "totals": SimpleNamespace()}, file)


def a_directory(file: Path) -> None:
    file.unlink()
    (file / "learner.pt").mkdir(parents=True)


@pytest.mark.parametrize("tear", [half, empty, noise, zeros, other, a_pickle, a_directory])
def test_a_torn_one_is_passed_over_and_said(tmp_path, said, tear):
    put(tmp_path / "1" / "checkpoint_1", 10)
    tear(put(tmp_path / "1" / "checkpoint_2", 20) / "learner.pt")
    assert newest(tmp_path, said) == 10
    if tear is not a_directory:
        (line,) = said
        assert line.startswith("skipping the checkpoint ")
        assert "checkpoint_2', which is broken (" in line


def test_where_none_is_whole_training_begins_anew(tmp_path, said):
    half(put(tmp_path / "1" / "checkpoint_1", 10) / "learner.pt")
    assert newest(tmp_path, said) is None
    assert len(said) == 2
    assert said[1] == "no checkpoint is intact; training starts from the beginning"


BUSY = (
    "When reading information for key 'learner.pt' in bucket 'b': AWS Error SLOW_DOWN during HeadObject operation: "
    "Please reduce your request rate. (HTTP status 503)"
)


@pytest.fixture
def fails(monkeypatch):
    """Let the newest checkpoint fail to be fetched, so many times."""

    def fail(error: OSError, times: int = 100):
        as_directory, left = train.Checkpoint.as_directory, [error] * times

        def fetched(checkpoint):
            if left and checkpoint.path.endswith("checkpoint_2"):
                raise left.pop()
            return as_directory(checkpoint)

        monkeypatch.setattr(train.Checkpoint, "as_directory", fetched)

    return fail


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(BUSY), TransientError, r"SLOW_DOWN .*; try again later"),
        (OSError(errno.ENOSPC, "No space left on device"), TransientError, "No space left on device; try again later"),
        (PermissionError(errno.EACCES, "Permission denied"), UserError, "Permission denied"),
    ],
)
def test_a_store_that_does_not_give_one_is_no_reason_to_go_back(tmp_path, said, fails, error, kind, words):
    for number in (1, 2):
        put(tmp_path / "1" / f"checkpoint_{number}", number)
    fails(error)
    with pytest.raises(kind, match=words):
        newest(tmp_path, said)
    assert not said


def test_what_a_second_attempt_mends_is_tried_again(tmp_path, said, fails, monkeypatch):
    monkeypatch.setattr("rgtg.s3_filesystem.PAUSE_S", 0.0)
    for number in (1, 2):
        put(tmp_path / "1" / f"checkpoint_{number}", number)
    fails(OSError("Failed to flush response stream"), times=2)
    assert newest(tmp_path, said) == 2


@pytest.mark.ray
def test_training_goes_on_past_torn_state_and_only_with_as_many_workers(
    configure, write_parquet, ray_here, tmp_path, monkeypatch, capsys
):
    from tests.pipelines.test_train_reward import make_pairs

    def job(workers: int):
        return configure(
            **{
                "train_reward.pairs": write_parquet("pairs.parquet", **make_pairs(160)),
                "train_reward.eval_pairs": write_parquet("eval.parquet", **make_pairs(40, seed=1)),
                "train_reward.checkpoint_every": 5,
                "train_reward.num_workers": workers,
            }
        )

    upload = train_reward.storage.upload

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_reward.storage, "upload", dies)  # after the last checkpoint
    with pytest.raises(KeyboardInterrupt):
        train_reward.run(job(1))
    monkeypatch.setattr(train_reward.storage, "upload", upload)
    place = Path(job(1).run.directory, "_train", "train_reward")
    first, *_ = checkpoints.found(str(place))
    half(Path(first, "learner.pt"))
    snapshot = place / "1" / "checkpoint_manager_snapshot.json"
    half(snapshot)
    with pytest.raises(UserError, match=r"train_reward\.num_workers 1 \(now 2\); resume it as it began"):
        train_reward.run(job(2))
    directory = train_reward.run(job(1))
    assert directory.counts("train_reward")["step"] == 20
    assert "is broken" in capsys.readouterr().out
    assert not place.exists()
