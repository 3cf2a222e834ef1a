"""What stands for the contents of files and models."""

import shutil
from pathlib import Path

import pytest

from pipelines.runtime.fingerprints import InputDigests, changed_names, check_unchanged, fingerprint
from rgtg.errors import UserError


def test_why_there_are_no_files_is_said(tmp_path):
    (tmp_path / "a.parquet").symlink_to(tmp_path / "nothing")
    with pytest.raises(
        UserError, match=r"there are no .* files at .* \('.*a.parquet': a link to a file that does not exist\)"
    ):
        InputDigests().files([str(tmp_path)])


def test_a_job_keeps_the_digests_that_it_began_with(language_dir, tmp_path):
    model, prompts = Path(shutil.copytree(language_dir, tmp_path / "model")), tmp_path / "prompts.jsonl"
    prompts.write_text("{}")

    def digests_by(job: InputDigests) -> tuple[str, str]:
        return job.model(str(model)), fingerprint({"prompts": job.files([str(prompts)])})

    job = InputDigests()
    begun = digests_by(job)
    check_unchanged({str(model): begun[0]})
    prompts.write_text("[]")
    (model / "config.json").write_text("{}")
    assert digests_by(job) == begun
    assert not set(digests_by(InputDigests())) & set(begun)
    with pytest.raises(UserError, match="model' changed while the job ran"):
        check_unchanged({str(model): begun[0]})


def test_a_setting_that_an_older_version_did_not_know_is_no_change_while_it_is_off():
    before = {"beta": 2.0, "k": None}
    assert not changed_names(before, before | {"unguided_samples": 0, "score": None})
    assert changed_names(before, before | {"unguided_samples": 4}) == {"unguided_samples"}
    assert changed_names(before, {"beta": 2.0, "k": 0}) == {"k"}, "one that it knew"
    assert changed_names(before | {"gone": 1}, before) == {"gone"}
