"""What the output of a stage depends on: its inputs by name, digests of files and models, and what changed in them."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

from rgtg import storage
from rgtg.digests import content_digest, file_digest
from rgtg.errors import UserError
from rgtg.input_files import SUFFIXES, Found, find
from rgtg.models.adapters import describe, is_adapter
from rgtg.node_copy import local_copy

ROUNDING = ("rgtg", "torch", "transformers")  # packages whose versions decide how a row rounds

Inputs = dict[str, Any]  # everything that changes a stage's rows, by names that a person knows


class InputDigests:
    """The digests of one job's inputs. Each is computed once, when a stage first asks for it."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, ...], Found] = {}
        self._files: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        self._models: dict[str, str] = {}

    def found(self, places: list[str]) -> Found:
        """The input files at `places`: those of which `files` has the digests."""
        if tuple(places) not in self._found:
            self._found[tuple(places)] = find(places)
        return self._found[tuple(places)]

    def files(self, places: list[str]) -> list[dict[str, Any]]:
        """Names, sizes and digests of the input files at `places`. Raises UserError where there are none."""
        if tuple(places) not in self._files:
            self._files[tuple(places)] = _listing(places, self.found(places))
        return self._files[tuple(places)]

    def model(self, place: str) -> str:
        """As `model_digest`."""
        if place not in self._models:
            self._models[place] = model_digest(place)
        return self._models[place]


def _listing(places: list[str], found: Found) -> list[dict[str, Any]]:
    files = found.files
    if not files:
        broken = next((f" ({path!r}: {reason})" for path, reason in found.unreadable.items()), "")
        raise UserError(f"there are no {' or '.join(SUFFIXES)} files at {', '.join(map(repr, places))}{broken}")
    with ThreadPoolExecutor(storage.READERS) as pool:
        digests = list(pool.map(lambda file: file_digest(file.place, file.path), files))
    return [
        {"path": file.path, "size": file.size, "sha256": content} for file, content in zip(files, digests, strict=True)
    ]


def model_digest(place: str) -> str:
    """What stands for the contents of a model in a fingerprint: a directory's digest, or a hub id with its commit."""
    if "://" not in place and not storage.exists(place):
        return place
    directory = local_copy(place)
    digest = f"sha256:{content_digest(directory)}"
    return f"{digest} on {model_digest(describe(directory, place)[0])}" if is_adapter(directory) else digest


def check_unchanged(digests: dict[str, str]) -> None:
    """Raises UserError where a model, by its place, is not what the driver saw: what a worker has just loaded would
    mix two models in one run.
    """
    for place, digest in digests.items():
        if model_digest(place) != digest:
            raise UserError(
                f"the model {place!r} changed while the job ran (it was {digest}); put it back to go on, or give "
                "another run.id"
            )


def versions_that_round() -> Inputs:
    return {f"version of {name}": version(name) for name in ROUNDING}


def fingerprint(inputs: Inputs) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def changes_between(before: Inputs, now: Inputs) -> str:
    """The inputs that differ, as part of a sentence: each with its value before and now."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return " and ".join(_change(name, before.get(name), now.get(name)) for name in names)


def _change(name: str, before: Any, now: Any) -> str:
    if isinstance(before, list) and isinstance(now, list):  # of files: the first one that differs
        before, now = (next((f for f in a if f not in b), None) for a, b in ((before, now), (now, before)))
    return f"{name} {_short(before)} (now {_short(now)})"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:197]}..."
