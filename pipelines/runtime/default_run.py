"""Which run a command goes on with that was given no id: tonight's, or last night's that is not complete."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import yaml

from pipelines.runtime.job_log import log
from pipelines.runtime.run_directory import SUCCESS, manifest_of
from rgtg import storage
from rgtg.config import SANDBOX, Config
from rgtg.errors import UserError

NIGHT_S = 12 * 3600  # a run of yesterday that is younger goes on after midnight


def default_run_id(root: str, config: Config) -> str:
    """The id of a run that was given none: today's date, or yesterday's while last night's run is not complete.

    A job that begins before midnight and is restarted after it goes on with its run. A run that would not take these
    settings, or cannot be read, is no reason for tonight's not to begin.
    """
    today = date.today()
    last = (today - timedelta(days=1)).isoformat()
    place = storage.join(root, last)
    if storage.exists(storage.join(root, today.isoformat())):
        return today.isoformat()
    try:
        found = manifest_of(place)
    except UserError as error:
        return _begins(today, str(error))
    if not found or storage.exists(storage.join(place, SUCCESS)):
        return today.isoformat()
    age = (datetime.now(UTC) - datetime.fromisoformat(found["created"])).total_seconds()
    if age > NIGHT_S:
        return today.isoformat()
    if changed := _changed(place, found, config):
        return _begins(today, f"{place} has another {' and '.join(changed)}")
    log.info(f"run: {place}, which is not complete; it began {age / 3600:.1f} hours ago")
    return last


def _begins(today: date, why: str) -> str:
    log.info(f"run: {today.isoformat()} begins, since {why}")
    return today.isoformat()


def _changed(place: str, manifest: dict[str, Any], config: Config) -> list[str]:
    """The settings of the run at `place` on which its stages depend and that are not those of `config`."""
    inputs = {name for stage in manifest["stages"].values() for name in stage.get("inputs", {})}
    try:
        settings = yaml.safe_load(storage.read_bytes(storage.join(place, "config.yaml")))
        before = {f"{section}.{key}": value for section, of in settings.items() for key, value in of.items()}
    except (UserError, yaml.YAMLError, ValueError, AttributeError):
        return []  # what it was is not known
    now = {f"{section}.{key}": value for section, of in config.model_dump().items() for key, value in of.items()}
    # Stages of the other sections are done anew, whatever they were done from. The sandbox adds `eval_pairs`.
    kept = ("models.", "train_reward.", "generate.", "run.seed")
    names = {name for name in inputs if name.startswith(kept)} & before.keys() - {"train_reward.eval_pairs"}
    return sorted(name for name in names & now.keys() if not _is_same(before[name], now[name]))


def _is_same(before: Any, now: Any) -> bool:
    """Whether a setting, which a run keeps with its places resolved, may come from `now`."""
    if isinstance(before, list) and isinstance(now, list):
        return len(before) == len(now) and all(map(_is_same, before, now))
    if now == SANDBOX:
        return True  # what it stands for is known only where it was made
    if isinstance(before, str) and isinstance(now, str):
        return before in (now, storage.absolute(now)) or before.partition("@")[0] == now  # a hub's id, pinned
    return bool(before == now)
