"""Where the files of a model are: a directory, a remote one of which a copy is made, or the Hugging Face hub."""

import os
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from rgtg.errors import TransientError, UserError
from rgtg.node_copy import local_copy

# What is fetched from the hub: never a pickle, and code only where it is to be run.
DESCRIPTION = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py"]
WEIGHTS = ["*.safetensors"]


def local_directory(place: str, what: str, *, weights: bool = False) -> str:
    """A local directory with the model at `place`, with or without its weights.

    Raises UserError where there is none, TransientError where a store or the hub does not answer.
    """
    if "://" in place:
        return local_copy(place)
    path = os.path.expanduser(place)
    if os.path.isdir(path):
        return path
    if os.path.exists(path):
        raise UserError(f"{what}: {place!r} is a file; give the directory of a model")
    if not _is_hub_id(place):
        raise UserError(f"{what}: the directory {place!r} does not exist")
    repository, _, revision = place.partition("@")
    try:
        return snapshot_download(repository, revision=revision or None, allow_patterns=DESCRIPTION + WEIGHTS * weights)
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError, HFValidationError) as error:
        raise UserError(f"{what}: no directory {place!r} exists, and the hub says: {_line(error)}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if constants.HF_HUB_OFFLINE:
            raise UserError(
                f"{what}: no directory {place!r} exists, nor a copy from the hub, which HF_HUB_OFFLINE keeps from "
                "being asked"
            ) from error
        raise TransientError(
            f"{what}: no directory {place!r} exists, and the hub does not answer: {_line(error)}"
        ) from error


def pinned(place: str, what: str) -> str:
    """A hub id with the commit that it stands for now, `owner/name@<commit>`; any other place as it is.

    A night takes hours, and a resumed one longer: all its actors must load the same weights.
    """
    if "://" in place or os.path.isdir(os.path.expanduser(place)) or not _is_hub_id(place):
        return place
    return f"{place.partition('@')[0]}@{Path(local_directory(place, what)).name}"


def _is_hub_id(place: str) -> bool:
    """A hub id is one name or owner/name, with an optional @revision; everything else is a path."""
    return not place.startswith(("/", "./", "../", "~")) and place.partition("@")[0].count("/") <= 1


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
