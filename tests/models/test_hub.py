"""Hub ids, from a cache of the hub as another download left it; nothing here asks the network."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from rgtg.errors import TransientError, UserError
from rgtg.models.hub import local_directory, pinned
from rgtg.models.language import LanguageModel

OLD, NEW = "0" * 40, "1" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch, language_dir):
    """A cache with two commits of owner/model; main is the new one."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub._snapshot_download.constants, "HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--owner--model"
    for commit in (OLD, NEW):
        shutil.copytree(language_dir, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(NEW)
    return model


def test_a_hub_id_is_pinned_to_its_commit(hub):
    assert pinned("owner/model", "m") == f"owner/model@{NEW}"
    assert pinned(f"owner/model@{OLD}", "m") == f"owner/model@{OLD}"
    (hub / "refs" / "main").write_text(OLD)
    assert Path(local_directory(f"owner/model@{NEW}", "m", weights=True)).name == NEW
    assert Path(local_directory("owner/model", "m")).name == OLD


def test_other_places_are_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "model").mkdir(parents=True)
    for place in ("s3://bucket/model", str(tmp_path), "owner/model"):  # what is there on disk is no hub id
        assert pinned(place, "m") == place
    assert local_directory("owner/model", "m") == "owner/model"


def test_a_model_of_the_hub_loads(hub, language_dir):
    assert LanguageModel.load("owner/model", device="cpu").context == LanguageModel.load(language_dir).context


def test_what_is_no_mistake_may_work_later(hub, monkeypatch):
    with pytest.raises(UserError, match="m: no directory 'owner/other' exists, nor a copy from the hub"):
        local_directory("owner/other", "m")
    with pytest.raises(UserError, match="m: the directory '/owner/model' does not exist"):
        local_directory("/owner/model", "m")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("rgtg.models.hub.snapshot_download", unreachable)
    with pytest.raises(TransientError, match="the hub does not answer: no route"):
        local_directory("owner/other", "m")
