"""Fingerprints: the inputs that the output of a stage depends on, with digests of files and models."""

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

Inputs = dict[str, Any]  # everything that changes a stage's rows, by the names of settings and stages


class InputDigests:
    """The digests of a job's inputs. Each is computed once, when a stage first asks for it."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, ...], Found] = {}
        self._files: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        self._models: dict[str, str] = {}

    def found(self, uris: list[str]) -> Found:
        """The input files at or below `uris`, which are those that `files` describes."""
        key = tuple(uris)
        if key not in self._found:
            self._found[key] = find(uris)
        return self._found[key]

    def files(self, uris: list[str]) -> list[dict[str, Any]]:
        """Paths, sizes and digests of the input files at or below `uris`. Raises UserError where there are none."""
        key = tuple(uris)
        if key not in self._files:
            self._files[key] = _described(uris, self.found(uris))
        return self._files[key]

    def model(self, uri: str) -> str:
        """The same as `model_digest`."""
        if uri not in self._models:
            self._models[uri] = model_digest(uri)
        return self._models[uri]


def _described(uris: list[str], found: Found) -> list[dict[str, Any]]:
    files = found.files
    if not files:
        broken = next((f" ({path!r}: {reason})" for path, reason in found.unreadable.items()), "")
        raise UserError(f"there are no {' or '.join(SUFFIXES)} files at {', '.join(map(repr, uris))}{broken}")
    with ThreadPoolExecutor(storage.READERS) as pool:
        digests = list(pool.map(lambda file: file_digest(file.uri, file.path), files))
    return [
        {"path": file.path, "size": file.size, "sha256": content} for file, content in zip(files, digests, strict=True)
    ]


def model_digest(uri: str) -> str:
    """A model in a fingerprint: the digest of its directory, or the hub id with its commit."""
    if "://" not in uri and not storage.exists(uri):
        return uri
    directory = local_copy(uri)
    digest = f"sha256:{content_digest(directory)}"
    return f"{digest} on {model_digest(describe(directory, uri)[0])}" if is_adapter(directory) else digest


def check_unchanged(digests: dict[str, str]) -> None:
    """Raises UserError where a model, by its path, has another digest now than when the driver took it.

    A worker calls it after loading, so that no run mixes the outputs of two models.
    """
    for uri, digest in digests.items():
        if model_digest(uri) != digest:
            raise UserError(
                f"the model {uri!r} changed while the job ran (its digest was {digest}); restore it to resume, or set "
                "another run.id"
            )


def versions_that_round() -> Inputs:
    return {f"version of {name}": version(name) for name in ROUNDING}


def fingerprint(inputs: Inputs) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def changed_names(before: Inputs, now: Inputs) -> set[str]:
    """The inputs that differ. One that a version of old did not know is the same where it is off now."""
    return {name for name in {**before, **now} if before.get(name) != now.get(name) and (name in before or now[name])}


def changes_between(before: Inputs, now: Inputs) -> str:
    """The inputs that differ, as part of a sentence: each with its value before and now."""
    changed = changed_names(before, now)
    names = [name for name in {**before, **now} if name in changed]
    return " and ".join(_change(name, before.get(name), now.get(name)) for name in names)


def _change(name: str, before: Any, now: Any) -> str:
    if isinstance(before, list) and isinstance(now, list):  # of files: the first one that differs
        before, now = (next((f for f in a if f not in b), None) for a, b in ((before, now), (now, before)))
    return f"{name} {_short(before)} (now {_short(now)})"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:197]}..."
