"""The sandbox's cache: built once, whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rgtg import sandbox
from rgtg.sandbox import world
from rgtg.sandbox.sizes import LanguageSpec, SandboxSpec

TINY = SandboxSpec(
    language=LanguageSpec(
        hidden=16, intermediate=32, layers=1, heads=2, kv_heads=1, tokenizer_texts=100, steps=3, rows=1
    ),
    pairs=40,
    eval_pairs=10,
    prompts=12,
)


def quiet(line: str) -> None:
    pass


def test_ensure_builds_everything_once(tmp_path: Path) -> None:
    lines: list[str] = []
    built = sandbox.ensure(tmp_path, lines.append, TINY)
    assert lines
    pairs, eval_pairs, prompts = (pq.read_table(path) for path in (built.pairs, built.eval_pairs, built.prompts))
    assert (len(pairs), len(eval_pairs), len(prompts)) == (40, 10, 12)
    assert pairs.column_names == eval_pairs.column_names == ["prompt", "chosen", "rejected"]
    assert prompts.column_names == ["prompt", "product"]
    assert all(row["product"] == world.PROMPTS[row["prompt"]] for row in prompts.to_pylist())
    assert not {row["chosen"] for row in pairs.to_pylist()} & {row["chosen"] for row in eval_pairs.to_pylist()}
    assert (built.language / "model.safetensors").is_file()

    (built.language / "mark").touch()  # a rebuild would lose it
    lines.clear()
    assert sandbox.ensure(tmp_path, lines.append, TINY) == built
    assert lines == []
    assert (built.language / "mark").is_file()
    assert [path.name for path in (tmp_path / "sandbox").iterdir()] == [built.language.parent.name]


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_build", lambda home, log, spec: home.mkdir())
    monkeypatch.setenv("RGTG_CACHE", str(tmp_path / "elsewhere"))
    assert (tmp_path / "elsewhere" / "sandbox") in sandbox.ensure(log=quiet, spec=TINY).language.parents
    monkeypatch.delenv("RGTG_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (tmp_path / ".cache" / "rgtg" / "sandbox") in sandbox.ensure(log=quiet, spec=TINY).language.parents


def test_other_sizes_are_another_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_build", lambda home, log, spec: home.mkdir())
    assert sandbox.ensure(tmp_path, quiet, TINY) != sandbox.ensure(tmp_path, quiet, SandboxSpec())


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sandbox.ensure(tmp_path, fail, TINY)
    assert list((tmp_path / "sandbox").iterdir()) == []


def test_a_killed_build_does_not_count(tmp_path: Path) -> None:
    """SIGKILL in the middle of the training, when the pairs are written already."""
    script = (
        "import os, signal\n"
        "from rgtg import sandbox\n"
        "from rgtg.sandbox.sizes import LanguageSpec, SandboxSpec\n"
        f"sandbox.ensure(log=lambda line: os.kill(os.getpid(), signal.SIGKILL), spec={TINY!r})\n"
    )
    root = str(Path(sandbox.__file__).parents[2])
    environment = {**os.environ, "RGTG_CACHE": str(tmp_path), "PYTHONPATH": root}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert killed.returncode == -9
    left = [path.name for path in (tmp_path / "sandbox").iterdir()]
    assert len(left) == 1  # it was killed while building
    assert left[0].startswith(".building-")

    built = sandbox.ensure(tmp_path, quiet, TINY)
    assert (built.language / "model.safetensors").is_file()


def test_two_builds_at_once_both_end_well(tmp_path: Path) -> None:
    """The second starts and finishes while the first is training."""
    inner: list[sandbox.Sandbox] = []

    def meanwhile(line: str) -> None:
        if not inner:
            inner.append(sandbox.ensure(tmp_path, quiet, TINY))
            (inner[0].language / "mark").touch()

    outer = sandbox.ensure(tmp_path, meanwhile, TINY)
    assert inner == [outer]
    assert (outer.language / "mark").is_file()  # the winner's, not replaced
    assert [path.name for path in (tmp_path / "sandbox").iterdir()] == [outer.language.parent.name]
