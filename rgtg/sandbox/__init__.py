"""The embedded default: a small world of reviews whose true reward can be computed, so that guidance can be checked.

`ensure()` gives a trained language model, preference pairs and prompts, built on first use and then cached.
"""

import hashlib
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rgtg.node_copy import cache_directory
from rgtg.sandbox import world
from rgtg.sandbox.sizes import FULL, SandboxSpec


@dataclass(frozen=True)
class Sandbox:
    """Where a built sandbox lies."""

    language: Path  # directory of a causal language model with its tokenizer
    pairs: Path  # Parquet: prompt, chosen, rejected
    eval_pairs: Path  # Parquet, the same columns, other pairs
    prompts: Path  # Parquet: prompt, product


def ensure(cache: Path | None = None, log: Callable[[str], None] = print, spec: SandboxSpec = FULL) -> Sandbox:
    """The sandbox, built now if it is not there: `<cache>/sandbox/<digest of its sources and sizes>/`.

    `cache` is by default `$RGTG_CACHE`, else `~/.cache/rgtg`. A build appears under its name only when it is complete,
    so that one which was killed is built again, and of two at once the first to finish is used by both.
    """
    base = cache.expanduser().absolute() if cache else cache_directory()
    home = base / "sandbox" / _digest(spec)
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        building = home.with_name(f".building-{home.name}-{uuid.uuid4().hex[:8]}")
        try:
            _build(building, log, spec)
            _publish(building, home)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return _layout(home)


def _layout(home: Path) -> Sandbox:
    return Sandbox(
        language=home / "language",
        pairs=home / "pairs.parquet",
        eval_pairs=home / "eval_pairs.parquet",
        prompts=home / "prompts.parquet",
    )


def _digest(spec: SandboxSpec) -> str:
    """Changes with the sizes and with every edit of what makes the sandbox."""
    digest = hashlib.sha256(repr(spec).encode())
    for source in ("__init__.py", "grammar.py", "language.py", "world.py"):
        digest.update(Path(__file__).with_name(source).read_bytes())
    return digest.hexdigest()[:16]


def _build(home: Path, log: Callable[[str], None], spec: SandboxSpec) -> None:
    """Write a whole sandbox to the new directory `home`."""
    from rgtg.sandbox.language import train_language  # torch: seconds that the import of a config need not pay

    home.mkdir()
    parts = _layout(home)
    _write(parts.pairs, world.preference_pairs(spec.pairs, seed=1))
    _write(parts.eval_pairs, world.preference_pairs(spec.eval_pairs, seed=2))
    prompts = world.prompts(spec.prompts, seed=3)
    _write(parts.prompts, [{"prompt": prompt, "product": world.PROMPTS[prompt]} for prompt in prompts])
    train_language(parts.language, seed=0, log=log, spec=spec.language)


def _publish(building: Path, home: Path) -> None:
    try:
        building.rename(home)
    except OSError:
        if not home.is_dir():
            raise
        # Another process was faster. What it built is the same, so this one's copy can go.


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)
