"""A run in the layout of hubs: the files of its repository, the card with its `configs`, a manifest without places."""

import re
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import yaml

from rgtg.errors import kind_of
from rgtg.methods import EXPORTS
from rgtg.report.places import scrubbed, without_places

SPLITS = ("train", "test")
# The front matter's `configs` are all read as the first one is, so that each of them is Parquet.
CONFIGS = {"default": "data/{}-*.parquet"} | {
    name: f"exports/{name}/{{}}/*.parquet" if export.suffix == "parquet" else f"{name}/{{}}-*.parquet"
    for name, export in EXPORTS.items()
}
REASONS = ("error_reasons", "unused", "dropped")  # counts by sentences, which may quote the data


class Table(NamedTuple):
    """A file of preferences/ or exports/."""

    source: str  # below the run directory
    path: str  # in the repository
    export: str | None = None  # lines of JSON of this export, which become Parquet


def tables(names: list[str]) -> list[Table]:
    """The tables of a dataset's repository, of the sorted names of all files in preferences/ and exports/.

    Exports stay as their trainers want them, and those of JSON lines are there once more as Parquet.
    """
    found = []
    for split in SPLITS:
        found += _numbered(_matching(names, rf"preferences/{split}-\d+\.parquet"), f"data/{split}")
        for name, export in EXPORTS.items():
            files = _matching(names, rf"exports/{name}/{split}/\d+\.{export.suffix}")
            found += [Table(file, file) for file in files]
            if export.suffix == "jsonl":
                found += _numbered(files, f"{name}/{split}", name)
    return found + [Table(file, file) for file in _matching(names, r"exports/[a-z-]+/dataset_info\.json")]


def _matching(names: list[str], pattern: str) -> list[str]:
    return [name for name in names if re.fullmatch(pattern, name)]


def _numbered(sources: list[str], prefix: str, export: str | None = None) -> list[Table]:
    of = f"of-{len(sources):05d}.parquet"
    return [Table(source, f"{prefix}-{i:05d}-{of}", export) for i, source in enumerate(sources)]


def is_of_a_night(path: str) -> bool:
    """Whether a file of a dataset's repository goes where the next night has none of that name."""
    return path.split("/")[0] in {"data", "exports", "report", *EXPORTS}


def is_of_a_model(path: str) -> bool:
    return path.endswith((".safetensors", ".safetensors.index.json"))


def dataset_card(card: str, repo: str, run_id: str, paths: Iterable[str], places: set[str]) -> str:
    """The card of a run as its repository has it: with `configs`, and how to load each of them from there."""
    configs = _configs(list(paths))
    _, front, body = card.split("---\n", 2)
    settings = yaml.safe_load(front) | {"configs": configs}
    others = ", ".join(f"`{config['config_name']}`" for config in configs[1:])
    loads = f'load_dataset("{repo}", revision="{run_id}")'
    body = body.replace("load_dataset(DIRECTORY)", loads)
    if others:
        body += f'\nOf this repository, `load_dataset("{repo}", NAME, revision="{run_id}")` reads {others} too.\n'
    return f"---\n{yaml.safe_dump(settings, sort_keys=False).strip()}\n---\n{scrubbed(body, places)}"


def _configs(paths: list[str]) -> list[dict[str, Any]]:
    found = []
    for name, pattern in CONFIGS.items():
        of_splits = {split: pattern.format(split) for split in SPLITS}
        files = [
            {"split": split, "path": glob}
            for split, glob in of_splits.items()
            if any(fnmatchcase(path, glob) for path in paths)
        ]
        if files:
            found.append({"config_name": name, "data_files": files})
    return found


def model_card(card: str, repo: str, run_id: str, places: set[str]) -> str:
    """The card of a reward model, which loads it from its repository."""
    return scrubbed(card, places).replace(
        'from_pretrained("DIRECTORY")', f'from_pretrained("{repo}", revision="{run_id}")'
    )


def manifest(of_run: dict[str, Any]) -> dict[str, Any]:
    """A manifest with the names of files, their sizes and digests, and no text of a row."""
    stages = {
        name: stage | ({"counts": _counts(stage["counts"])} if "counts" in stage else {})
        for name, stage in of_run["stages"].items()
    }
    return without_places(of_run | {"stages": stages})  # type: ignore[no-any-return]


def _counts(counts: dict[str, Any]) -> dict[str, Any]:
    told = dict(counts)
    for name in REASONS:
        if isinstance(counts.get(name), dict):
            kinds: Counter[str] = Counter()
            for reason, times in counts[name].items():
                kinds[kind_of(reason)] += times
            told[name] = dict(kinds)
    if "skipped_files" in counts:
        told["skipped_files"] = dict(Counter(map(kind_of, counts["skipped_files"].values())))
    return told
