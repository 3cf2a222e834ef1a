"""The run directory and its manifest: which stages are done, from what, and with which counts.

<root>/<run id>/   config.yaml  manifest.json  pairs/  reward_model/  prompts/  completions/  preferences/  report/
                   _checkpoint/  and _SUCCESS, written last
"""

import json
import platform
import time
from datetime import date, datetime
from functools import cache
from importlib.metadata import version
from typing import Any, Literal

import yaml

from pipelines.runtime.fingerprints import Inputs, changes_between, fingerprint
from pipelines.runtime.job_log import log
from rgtg import storage
from rgtg.config import Config
from rgtg.errors import UserError, first_line

PACKAGES = ("rgtg", "ray", "torch", "transformers", "pyarrow")
SUCCESS = "_SUCCESS"

FORMAT = 1  # of a manifest; those without a number are of this one


class RunDirectory:
    """One run on disk. Stages begin and finish here; the manifest is written anew, whole, at every change."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.place = config.run.directory
        storage.make_directory(self.place)
        found = manifest_of(self.place)
        versions = attempt()["versions"]
        new = {"format": FORMAT, "run_id": config.run.id, "created": _now(), "versions": versions, "stages": {}}
        self.manifest = found or new

    @property
    def date(self) -> date:
        """The day on which the run was begun (UTC), which chat templates write: it is one for all rows of a run."""
        return date.fromisoformat(self.manifest["created"][:10])

    def path(self, *names: str) -> str:
        return storage.join(self.place, *names)

    def begin(
        self,
        stage: str,
        inputs: Inputs,
        *,
        rerunnable: bool = False,
        alike: Inputs | None = None,
        has_work: bool = False,
    ) -> Literal["new", "resume", "done"]:
        """Whether `stage` is new here, was begun, or is done.

        Raises UserError where it was begun or done from other inputs, naming what changed: rows of two kinds would
        mix. A `rerunnable` stage, which writes its output anew and on which nothing stands yet, is new then.
        `alike` is what all attempts at an unfinished stage must have alike, such as versions, where an earlier one
        left work that this one goes on with (`has_work`). Where a finished stage grows, a change is said.
        """
        now = json.loads(json.dumps(inputs))  # as the manifest will read
        entry = self.manifest["stages"].get(stage)
        if entry and entry["inputs"] != now and not rerunnable:
            raise UserError(
                f"the run {self.place!r} has {changes_between(entry['inputs'], now)} in its stage {stage!r}; "
                "give those settings again to go on with it, or another run.id (--new-run) to start beside it"
            )
        if entry and entry["inputs"] == now and entry["status"] == "done":
            log.info(f"{stage}: already complete, skipping ({self.place})")
            return "done"
        if entry and has_work:
            self._check_alike(stage, entry, alike or {})
        storage.remove(self.path(SUCCESS))
        if entry and entry["inputs"] == now:
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
        """Raises UserError where work of an unfinished stage would go on under something else that rounds."""
        before = entry.get("unfinished")
        if not before or before == alike:
            return
        changes = changes_between(before, alike)
        if entry["status"] == "done":
            log.info(f"warning: {stage} has rows made with {changes}: the new ones may round otherwise")
            return
        raise UserError(
            f"the run {self.place!r} is in the middle of its stage {stage!r}, with {changes}; resume it as it began, "
            "or give another run.id (--new-run) to start beside it"
        )

    def changed(self, stage: str, inputs: Inputs) -> set[str]:
        """The names of inputs that are not as they were when `stage` began; none where it did not."""
        before, now = self.inputs_of(stage), json.loads(json.dumps(inputs))
        return {name for name in {**before, **now} if before.get(name) != now.get(name)} if before else set()

    def finish(self, stage: str, counts: dict[str, Any], seconds: float) -> None:
        entry = self.manifest["stages"][stage]
        entry |= {"status": "done", "finished": _now(), "seconds": round(seconds, 2), "counts": counts}
        self._save()
        log.info(f"{stage}: done in {seconds:.0f} s, in {self.place}")

    @property
    def stages(self) -> list[str]:
        """The names of all stages that were begun, in their order."""
        return list(self.manifest["stages"])

    def seconds(self) -> dict[str, float]:
        """How long each stage took, by name; 0 for one that is not done."""
        return {stage: entry.get("seconds", 0.0) for stage, entry in self.manifest["stages"].items()}

    def inputs_of(self, stage: str) -> Inputs:
        """The inputs with which a stage began; none where it did not."""
        return self.manifest["stages"].get(stage, {}).get("inputs", {})

    def counts(self, stage: str) -> dict[str, Any]:
        """The counts of a stage that is done."""
        return self.manifest["stages"][stage]["counts"]

    def config_of(self, stage: str) -> Config:
        """The config with which a stage began."""
        return Config.model_validate(self.manifest["stages"][stage]["config"])

    def fingerprint_of(self, stage: str) -> str:
        return self.manifest["stages"][stage]["fingerprint"]

    def has_begun(self, stage: str) -> bool:
        """Whether a stage of that name, or one whose name goes on from it, was begun."""
        return any(name.startswith(stage) for name in self.stages)

    def is_done(self, stage: str) -> bool:
        return self.manifest["stages"].get(stage, {}).get("status") == "done"

    def succeed(self) -> None:
        """Mark the whole run as complete."""
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
    """This process, as it stands in the manifests of its runs."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {"began": _now(), "versions": versions}


def manifest_of(place: str) -> dict[str, Any] | None:
    """The manifest of a run, None where there is no run. Raises UserError for one that cannot be read."""
    file = storage.join(place, "manifest.json")
    if not storage.exists(file):
        return None
    try:
        manifest = storage.read_json(file)
        datetime.fromisoformat(manifest["created"])
        manifest, number = manifest | {"stages": dict(manifest["stages"])}, int(manifest.get("format", FORMAT))
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise UserError(f"{file!r} is no manifest of a run ({first_line(error)}); give another run.id") from error
    if number > FORMAT:
        raise UserError(
            f"{file!r} has format {number}, of a newer rgtg, and this one knows {FORMAT}; update rgtg, or give "
            "another run.id"
        )
    return manifest


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
