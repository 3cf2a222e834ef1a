"""The default run id: today's date, or yesterday's while last night's run is incomplete."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import yaml

from pipelines.runtime.job_log import log
from pipelines.runtime.run_directory import SUCCESS, manifest_of
from rgtg import storage
from rgtg.config import SANDBOX, Config
from rgtg.errors import UserError

NIGHT_S = 12 * 3600  # only a younger run is resumed after midnight


def default_run_id(root: str, config: Config) -> str:
    """The run id where the config gives none: today's date, or yesterday's while last night's run is incomplete.

    A job that starts before midnight and is restarted after it resumes its run. If that run cannot be read, or was
    begun with other settings, a new run begins.
    """
    today = date.today()
    last = (today - timedelta(days=1)).isoformat()
    uri = storage.join(root, last)
    if storage.exists(storage.join(root, today.isoformat())):
        return today.isoformat()
    try:
        manifest = manifest_of(uri)
    except UserError as error:
        return _begins(today, str(error))
    if not manifest or storage.exists(storage.join(uri, SUCCESS)):
        return today.isoformat()
    age = (datetime.now(UTC) - datetime.fromisoformat(manifest["created"])).total_seconds()
    if age > NIGHT_S:
        return today.isoformat()
    if changed := _changed(uri, manifest, config):
        return _begins(today, f"{uri} has another {' and '.join(changed)}")
    log.info(f"run: resuming {uri}, which is incomplete and began {age / 3600:.1f} hours ago")
    return last


def _begins(today: date, reason: str) -> str:
    log.info(f"run: starting {today.isoformat()}, because {reason}")
    return today.isoformat()


def _changed(uri: str, manifest: dict[str, Any], config: Config) -> list[str]:
    """The settings that the stages of the run at `uri` depend on and that differ in `config`."""
    inputs = {name for stage in manifest["stages"].values() for name in stage.get("inputs", {})}
    try:
        settings = yaml.safe_load(storage.read_bytes(storage.join(uri, "config.yaml")))
        before = {f"{section}.{key}": value for section, of in settings.items() for key, value in of.items()}
    except (UserError, yaml.YAMLError, ValueError, AttributeError):
        return []  # its settings are unknown
    now = {f"{section}.{key}": value for section, of in config.model_dump().items() for key, value in of.items()}
    # The stages of all other sections are simply run again. The sandbox adds `eval_pairs`.
    kept = ("models.", "train_reward.", "generate.", "run.seed")
    names = {name for name in inputs if name.startswith(kept)} & before.keys() - {"train_reward.eval_pairs"}
    return sorted(name for name in names & now.keys() if not _is_same(before[name], now[name]))


def _is_same(before: Any, now: Any) -> bool:
    """Whether the resolved setting of a run may have come from `now`, which is not resolved."""
    if isinstance(before, list) and isinstance(now, list):
        return len(before) == len(now) and all(map(_is_same, before, now))
    if now == SANDBOX:
        return True  # its paths are known only to the machine that built it
    if isinstance(before, str) and isinstance(now, str):
        return before in (now, storage.absolute(now)) or before.partition("@")[0] == now  # a hub id, pinned
    return bool(before == now)
