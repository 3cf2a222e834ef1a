"""The local directory of a model, given as a directory, a URI that is copied, or an id of the Hugging Face hub."""

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

# Downloaded from the hub: never a pickle; *.py runs only with trust_remote_code.
DESCRIPTION = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py"]
WEIGHTS = ["*.safetensors"]


def local_directory(path: str, what: str, *, weights: bool = False) -> str:
    """A local directory with the model at `path`, with or without its weights.

    Raises UserError where there is none, TransientError where a store or the hub does not answer.
    """
    if "://" in path:
        return local_copy(path)
    expanded = os.path.expanduser(path)
    if os.path.isdir(expanded):
        return expanded
    if os.path.exists(expanded):
        raise UserError(f"{what}: {path!r} is a file; give the directory of a model")
    if not _is_hub_id(path):
        raise UserError(f"{what}: the directory {path!r} does not exist")
    repository, _, revision = path.partition("@")
    try:
        return snapshot_download(repository, revision=revision or None, allow_patterns=DESCRIPTION + WEIGHTS * weights)
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError, HFValidationError) as error:
        raise UserError(f"{what}: no directory {path!r} exists, and the hub says: {_line(error)}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if constants.HF_HUB_OFFLINE:
            raise UserError(
                f"{what}: no directory {path!r} exists, nor a copy from the hub; unset HF_HUB_OFFLINE to download one"
            ) from error
        raise TransientError(
            f"{what}: no directory {path!r} exists, and the hub does not answer: {_line(error)}"
        ) from error


def pinned(path: str, what: str) -> str:
    """A hub id with the commit that it stands for now, `owner/name@<commit>`; anything else unchanged.

    A night takes hours, and a resumed one longer: all its actors must load the same weights.
    """
    if "://" in path or os.path.isdir(os.path.expanduser(path)) or not _is_hub_id(path):
        return path
    return f"{path.partition('@')[0]}@{Path(local_directory(path, what)).name}"


def _is_hub_id(path: str) -> bool:
    """A hub id is one name or owner/name, with an optional @revision; everything else is a path."""
    return not path.startswith(("/", "./", "../", "~")) and path.partition("@")[0].count("/") <= 1


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
