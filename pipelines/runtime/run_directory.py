"""The run directory and its manifest: which stages are done, from which inputs, and with which counts.

<root>/<run id>/   config.yaml  manifest.json  pairs/  reward_model/  prompts/  completions/  preferences/
                   exports/  report/  _checkpoint/  and _SUCCESS, written last
"""

import json
import platform
import time
from datetime import date, datetime
from functools import cache
from importlib.metadata import version
from typing import Any, Literal

import yaml

from pipelines.runtime.fingerprints import Inputs, changed_names, changes_between, fingerprint
from pipelines.runtime.job_log import log
from rgtg import storage
from rgtg.config import Config
from rgtg.errors import UserError, first_line

PACKAGES = ("rgtg", "ray", "torch", "transformers", "pyarrow")
SUCCESS = "_SUCCESS"

FORMAT = 1  # of the manifest; one without a number has this format


class RunDirectory:
    """One run on disk or in a store. It records the begin and end of stages, and rewrites the manifest each time."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.uri = config.run.directory
        storage.make_directory(self.uri)
        found = manifest_of(self.uri)
        versions = attempt()["versions"]
        new = {"format": FORMAT, "run_id": config.run.id, "created": _now(), "versions": versions, "stages": {}}
        self.manifest = found or new

    @property
    def date(self) -> date:
        """The day on which the run began (UTC). Chat templates write this date, the same for all rows of a run."""
        return date.fromisoformat(self.manifest["created"][:10])

    def path(self, *names: str) -> str:
        return storage.join(self.uri, *names)

    def begin(
        self,
        stage: str,
        inputs: Inputs,
        *,
        rerunnable: bool = False,
        alike: Inputs | None = None,
        has_work: bool = False,
    ) -> Literal["new", "resume", "done"]:
        """Begin `stage`, and return whether it is new here, is resumed, or is done already.

        Raises UserError where it began with other inputs, which would mix two kinds of rows; the message names the
        changes. A `rerunnable` stage, which rewrites its output and which no later stage has used yet, is new instead.
        `alike` is what must be the same in all attempts at an unfinished stage, such as versions, if an earlier
        attempt left output to resume from (`has_work`). If a finished stage grows, a difference is only a warning.
        """
        now = json.loads(json.dumps(inputs))  # as the manifest will read
        entry = self.manifest["stages"].get(stage)
        same = entry is not None and not changed_names(entry["inputs"], now)
        if entry and not same and not rerunnable:
            raise UserError(
                f"the run {self.uri!r} has {changes_between(entry['inputs'], now)} in its stage {stage!r}; "
                "restore those settings to resume it, or start another run (--new-run, or another run.id)"
            )
        if entry and same and entry["status"] == "done":
            log.info(f"{stage}: already complete, skipping ({self.uri})")
            return "done"
        if entry and has_work:
            self._check_alike(stage, entry, alike or {})
        storage.remove(self.path(SUCCESS))
        if entry and same:
            entry["unfinished"] = alike
            self._save()
            return "resume"
        self.manifest["stages"][stage] = {
            "status": "begun",
            "fingerprint": fingerprint(now),
            "inputs": now,
            "unfinished": alike,
            "config": self.config.model_dump(exclude_defaults=True),
            "begun": _now(),
        }
        self._save()
        return "new"

    def _check_alike(self, stage: str, entry: dict[str, Any], alike: Inputs) -> None:
        """Raises UserError where an unfinished stage would be resumed by what rounds differently, such as versions."""
        before = entry.get("unfinished")
        if not before or before == alike:
            return
        changes = changes_between(before, alike)
        if entry["status"] == "done":
            log.info(f"warning: {stage} has rows made with {changes}; new rows may round differently")
            return
        raise UserError(
            f"the run {self.uri!r} is in the middle of its stage {stage!r}, with {changes}; resume it as it began, "
            "or start another run (--new-run, or another run.id)"
        )

    def changed(self, stage: str, inputs: Inputs) -> set[str]:
        """The names of inputs that differ from those with which `stage` began; none if it has not begun."""
        before, now = self.inputs_of(stage), json.loads(json.dumps(inputs))
        return changed_names(before, now) if before else set()

    def finish(self, stage: str, counts: dict[str, Any], seconds: float) -> None:
        entry = self.manifest["stages"][stage]
        entry |= {"status": "done", "finished": _now(), "seconds": round(seconds, 2), "counts": counts}
        self._save()
        log.info(f"{stage}: done in {seconds:.0f} s, in {self.uri}")

    @property
    def stages(self) -> list[str]:
        """The names of all stages that have begun, in order."""
        return list(self.manifest["stages"])

    def seconds(self) -> dict[str, float]:
        """The seconds that each stage took; 0 for an unfinished one."""
        return {stage: entry.get("seconds", 0.0) for stage, entry in self.manifest["stages"].items()}

    def inputs_of(self, stage: str) -> Inputs:
        """The inputs with which a stage began; none if it has not begun."""
        return self.manifest["stages"].get(stage, {}).get("inputs", {})

    def counts(self, stage: str) -> dict[str, Any]:
        """The counts of a finished stage."""
        return self.manifest["stages"][stage]["counts"]

    def config_of(self, stage: str) -> Config:
        """The config with which a stage began."""
        return Config.model_validate(self.manifest["stages"][stage]["config"])

    def fingerprint_of(self, stage: str) -> str:
        return self.manifest["stages"][stage]["fingerprint"]

    def has_begun(self, stage: str) -> bool:
        """Whether a stage has begun whose name is, or starts with, `stage`."""
        return any(name.startswith(stage) for name in self.stages)

    def is_done(self, stage: str) -> bool:
        return self.manifest["stages"].get(stage, {}).get("status") == "done"

    def succeed(self) -> None:
        """Mark the run as complete."""
        storage.write_bytes(self.path(SUCCESS), b"")

    def _save(self) -> None:
        attempts = self.manifest.setdefault("attempts", [])
        if attempt() not in attempts[-1:]:
            attempts.append(attempt())
        storage.write_bytes(
            self.path("config.yaml"), yaml.safe_dump(self.config.model_dump(), sort_keys=False).encode()
        )
        storage.write_json(self.path("manifest.json"), self.manifest)


@cache
def attempt() -> dict[str, Any]:
    """The entry of this process in the manifests of its runs."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {"began": _now(), "versions": versions}


def manifest_of(uri: str) -> dict[str, Any] | None:
    """The manifest of the run at `uri`, None where there is no run. Raises UserError for one that cannot be read."""
    file = storage.join(uri, "manifest.json")
    if not storage.exists(file):
        return None
    try:
        manifest = storage.read_json(file)
        datetime.fromisoformat(manifest["created"])
        manifest, number = manifest | {"stages": dict(manifest["stages"])}, int(manifest.get("format", FORMAT))
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise UserError(f"{file!r} is not a manifest of a run ({first_line(error)}); set another run.id") from error
    if number > FORMAT:
        raise UserError(
            f"{file!r} has format {number}, of a newer rgtg, and this version reads {FORMAT}; update rgtg, or set "
            "another run.id"
        )
    return manifest


def fingerprint_in(uri: str, stage: str, setting: str) -> str:
    """The fingerprint of a finished stage of the run at `uri`, which `setting` names. Raises UserError where there is
    none.
    """
    manifest = manifest_of(uri)
    entry = manifest["stages"].get(stage, {}) if manifest else {}
    if entry.get("status") != "done":
        raise UserError(f"{setting}: there are no finished {stage} in the run {uri!r}")
    return str(entry["fingerprint"])


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
