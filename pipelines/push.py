"""A complete run on the Hugging Face hub: its preferences as a dataset, or its reward model, in one commit and a tag.

The files go first, each by its content, and one commit takes them all: a push that is cut short leaves the repository
as it was, and the next one uploads what is missing.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars, validate_repo_id
from huggingface_hub.utils.logging import set_verbosity_error

from pipelines.preference_files import GROUP_ROWS
from pipelines.runtime.job_log import log
from pipelines.runtime.run_directory import SUCCESS, manifest_of
from rgtg import s3_filesystem, storage
from rgtg.config import Config
from rgtg.errors import TransientError, UserError, first_line
from rgtg.preferences.exports import schema_of
from rgtg.report import hub_layout
from rgtg.report.places import places_of, scrubbed, without_places
from rgtg.storage_errors import translate_errors

PAGE = "report/index.html"  # rendered from the other files, and again by any `rgtg report`
LATER = (408, 409, 412, 429)  # statuses below 500 after which the same request may be answered


class File(NamedTuple):
    """A file of the repository: bytes, or where it lies."""

    path: str
    content: bytes | str
    export: str | None = None  # `content` names lines of JSON of this export, which become Parquet


class Target(NamedTuple):
    api: HfApi
    repo: str
    kind: str  # `dataset` or `model`

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        return getattr(self.api, name)(self.repo, *arguments, repo_type=self.kind, **options)


def run(config: Config, repo: str, *, public: bool = False, reward_model: bool = False) -> None:
    """Push the run that `config.run` names. Raises UserError for one that is not complete, or is there otherwise."""
    uri, tag = storage.join(storage.absolute(config.run.root, must_exist=False), config.run.id), config.run.id
    began = _manifest(uri)
    _check_names(repo, tag)
    files = _model_files(uri, repo, began) if reward_model else _dataset_files(uri, repo, began)
    is_ours = hub_layout.is_of_a_model if reward_model else hub_layout.is_of_a_night
    token = get_token()
    if token is None:
        raise UserError("the hub asks who pushes: set HF_TOKEN to a token that may write, or run `hf auth login`")
    disable_progress_bars()
    set_verbosity_error()
    target = Target(HfApi(token=token), repo, "model" if reward_model else "dataset")
    with _translated(repo, token):
        target.call("create_repo", private=not public, exist_ok=True)
        found, refs = target.call("repo_info"), target.call("list_repo_refs")
        if not found.private and not public:
            raise UserError(f"the repository {repo!r} is public; push with --public, or to another one")
        if tag in (branch.name for branch in refs.branches):
            raise UserError(f"the repository {repo!r} has a branch {tag!r}, so that no tag can be called so")
        place = f"{repo} on the hub, at the tag {tag} ({'private' if found.private else 'public'})"
        if tag in (of.name for of in refs.tags):
            if other := _difference(target, tag, files, is_ours):
                raise UserError(
                    f"the repository {repo!r} has a tag {tag!r} with another {other}; delete the tag there to push "
                    "this run in its place, or push another run"
                )
            print(f"nothing to do: the run is {place} already", flush=True)
            return
        additions = [_uploaded(target, file) for file in files]
        gone = {path for path in target.call("list_repo_files", revision=found.sha) if is_ours(path)}
        gone -= {file.path for file in files}
        if _manifest(uri) != began:
            raise UserError(f"the run {uri!r} changed while it was pushed, and nothing is published; push it again")
        commit = target.call(
            "create_commit",
            [*additions, *map(CommitOperationDelete, sorted(gone))],
            commit_message=f"Run {tag}",
            parent_commit=found.sha,
        )
        target.call("create_tag", tag=tag, revision=commit.oid)
    print(f"pushed: {place}", flush=True)


def _manifest(uri: str) -> dict[str, Any]:
    """The manifest of a complete run."""
    found = manifest_of(uri) if storage.exists(storage.join(uri, SUCCESS)) else None
    if found is None:
        raise UserError(
            f"there is no complete run at {uri!r} (no {SUCCESS}): name one by run.root and run.id, or finish it by "
            "rgtg nightly; a run whose gates failed is not published"
        )
    return found


def _check_names(repo: str, tag: str) -> None:
    try:
        validate_repo_id(repo)
    except ValueError as error:
        raise UserError(f"--repo: {first_line(error)}") from error
    if "/" not in repo:
        raise UserError(f"--repo: write ORG/NAME, where ORG may be your own name, and not {repo!r}")
    if ".." in tag or tag.endswith((".", ".lock")):
        raise UserError(f"run.id: git allows no tag {tag!r}; rename the run's directory")


def _dataset_files(uri: str, repo: str, manifest: dict[str, Any]) -> list[File]:
    """The files of a dataset's repository; texts are made here, and tables are read when their turn comes."""
    places, config = _places(uri, manifest)
    names = [name for folder in ("preferences", "exports") for name in _below(uri, folder)]
    tables = hub_layout.tables(names)
    files = [File(table.path, storage.join(uri, table.source), table.export) for table in tables]
    card = storage.read_bytes(storage.join(uri, "report", "README.md")).decode()
    texts = {
        "README.md": hub_layout.dataset_card(card, repo, manifest["run_id"], [f.path for f in files], places),
        "config.yaml": yaml.safe_dump(without_places(config), sort_keys=False),
        "manifest.json": json.dumps(hub_layout.manifest(manifest), indent=2, ensure_ascii=False) + "\n",
    }
    page = storage.join(uri, PAGE)
    if storage.exists(page):
        texts[PAGE] = scrubbed(storage.read_bytes(page).decode(), places)
    return files + [File(path, text.encode()) for path, text in texts.items()]


def _model_files(uri: str, repo: str, manifest: dict[str, Any]) -> list[File]:
    if manifest["stages"].get("train_reward", {}).get("status") != "done":
        raise UserError(f"the run {uri!r} has trained no reward model")
    places, _ = _places(uri, manifest)
    files = []
    for name in _below(uri, "reward_model"):
        source, path = storage.join(uri, name), name.partition("/")[2]
        content: bytes | str = source
        if path in ("config.json", "tokenizer_config.json"):
            content = scrubbed(storage.read_bytes(source).decode(), places).encode()
        elif path == "README.md":
            card = storage.read_bytes(source).decode()
            content = hub_layout.model_card(card, repo, manifest["run_id"], places).encode()
        files.append(File(path, content))
    return files


def _places(uri: str, manifest: dict[str, Any]) -> tuple[set[str], dict[str, Any]]:
    """All places that the run names, and its settings."""
    config = yaml.safe_load(storage.read_bytes(storage.join(uri, "config.yaml")))
    return places_of([uri, config, manifest]), config


def _below(uri: str, folder: str) -> list[str]:
    """The files in a folder of the run, sorted, by their names from the run on; none where there is no folder."""
    place = storage.join(uri, folder)
    start = len(storage.resolve(uri)[1]) + 1
    return [file.path[start:] for file in storage.list_files(place)] if storage.exists(place) else []


@contextmanager
def _at_hand(file: File) -> Iterator[bytes | str]:
    """The content of a file, or the path of a local one; only one of a store is on this disk at a time."""
    if isinstance(file.content, bytes) or (storage.is_local(file.content) and not file.export):
        yield file.content if isinstance(file.content, bytes) else storage.resolve(file.content)[1]
        return
    with TemporaryDirectory() as directory:
        copy = str(Path(directory, "file"))
        with translate_errors(f"cannot read {file.content!r}"):
            s3_filesystem.retry_read(partial(_copy, file.content, copy))
        if file.export:
            lines, copy = copy, str(Path(directory, "parquet"))
            _as_parquet(lines, copy, file.export)
        yield copy


def _copy(uri: str, target: str) -> None:
    filesystem, path = storage.resolve(uri)
    with filesystem.open_input_stream(path) as source, open(target, "wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 22)


def _as_parquet(source: str, target: str, export: str) -> None:
    schema = schema_of(export, pa.string())  # chats have one schema, whatever the prompts are
    with open(source, "rb") as lines, pq.ParquetWriter(target, schema) as writer:
        while group := list(islice(lines, GROUP_ROWS)):
            writer.write_table(pa.Table.from_pylist([json.loads(line) for line in group], schema))


def _uploaded(target: Target, file: File) -> CommitOperationAdd:
    """The file, to be committed; the hub has its content by now, unless it wants small files in the commit itself."""
    with _at_hand(file) as content:
        addition = CommitOperationAdd(file.path, content)
        log.info(f"push: {file.path} ({addition.upload_info.size:,} bytes)")
        target.call("preupload_lfs_files", [addition])
        if isinstance(content, str) and addition.path_or_fileobj != b"":  # a small one, whose copy goes away
            addition.path_or_fileobj = Path(content).read_bytes()
    return addition


def _difference(target: Target, tag: str, files: list[File], is_ours: Callable[[str], bool]) -> str | None:
    """A file that is at the tag and not in the run, or the other way round, or another one; None where all agree.

    The page says nothing that the others do not, and does not count.
    """
    tree = target.call("list_repo_tree", revision=tag, recursive=True)
    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile) and entry.path != PAGE}
    wanted = {file.path: file for file in files if file.path != PAGE}
    if odd := sorted({path for path in there if is_ours(path)} - wanted.keys() | wanted.keys() - there.keys()):
        return odd[0]
    return next((path for path, file in wanted.items() if not _is_same(file, there[path])), None)


def _is_same(file: File, there: RepoFile) -> bool:
    """By digest: of large files the SHA-256, of others that of git. What is made of another file is as that one."""
    if file.export:
        return True
    with _at_hand(file) as content:
        size = len(content) if isinstance(content, bytes) else Path(content).stat().st_size
        if size != there.size:
            return False
        digest = hashlib.sha256() if there.lfs else hashlib.sha1(f"blob {size}\0".encode())
        if isinstance(content, bytes):
            digest.update(content)
        else:
            with open(content, "rb") as stream:
                while piece := stream.read(1 << 22):
                    digest.update(piece)
    return digest.hexdigest() == (there.lfs.sha256 if there.lfs else there.blob_id)


@contextmanager
def _translated(repo: str, token: str) -> Iterator[None]:
    """Errors of the hub in one sentence, whatever they quote: without the token, and without a traceback."""
    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        cause: BaseException = error
        while cause.__cause__ and not isinstance(
            cause, HfHubHTTPError
        ):  # the upload of a file wraps what the hub said
            cause = cause.__cause__
        raise _failure(repo, cause, token) from None


def _failure(repo: str, error: BaseException, token: str) -> UserError | TransientError:
    if isinstance(error, OfflineModeIsEnabled):
        return UserError("HF_HUB_OFFLINE is set; unset it to push")
    status, said = 0, first_line(error)
    if isinstance(error, HfHubHTTPError):
        status, said = error.response.status_code, error.server_message or said
    said = said.replace(token, "***").rstrip(".")
    if status in (401, 403, 404):
        return UserError(f"the hub does not let this token write to {repo!r} ({said}); set HF_TOKEN to one that may")
    if 400 <= status < 500 and status not in LATER or isinstance(error, ValueError):
        return UserError(f"the hub refuses what is pushed to {repo!r}: {said}")
    return TransientError(f"the push to {repo!r} was cut short: {said}; the same command goes on from there")
