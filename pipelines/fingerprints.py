"""Digests of the files and models that a job reads: they stand for the contents in the fingerprints of its stages."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rgtg import storage
from rgtg.errors import UserError
from rgtg.input_files import find
from rgtg.models.adapters import describe, is_adapter
from rgtg.rows import SUFFIXES


class InputDigests:
    """The digests of one job's inputs. Each is computed once, when a stage first asks for it."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        self._models: dict[str, str] = {}

    def files(self, places: list[str]) -> list[dict[str, Any]]:
        """Names, sizes and digests of the input files at `places`. Raises UserError where there are none."""
        if tuple(places) not in self._files:
            self._files[tuple(places)] = listing(places)
        return self._files[tuple(places)]

    def model(self, place: str) -> str:
        """As `model_digest`."""
        if place not in self._models:
            self._models[place] = model_digest(place)
        return self._models[place]


def listing(places: list[str]) -> list[dict[str, Any]]:
    """Names, sizes and digests of the input files at `places`. Raises UserError where there are none."""
    found = find(places)
    files = found.files
    if not files:
        broken = next((f" ({path!r}: {reason})" for path, reason in found.unreadable.items()), "")
        raise UserError(f"there are no {' or '.join(SUFFIXES)} files at {', '.join(map(repr, places))}{broken}")
    with ThreadPoolExecutor(storage.READERS) as pool:
        digests = list(pool.map(lambda file: storage.file_digest(file.place, file.path), files))
    return [
        {"path": file.path, "size": file.size, "sha256": content} for file, content in zip(files, digests, strict=True)
    ]


def model_digest(place: str) -> str:
    """What stands for the contents of a model in a fingerprint: a directory's digest, or a hub id with its commit."""
    if "://" not in place and not storage.exists(place):
        return place
    directory = storage.local_copy(place)
    digest = f"sha256:{storage.digest(directory)}"
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
