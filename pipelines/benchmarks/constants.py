"""What a constant of numerics gains or costs on this machine: a benchmark, run once for each of several values.

    python -m pipelines.benchmarks.constants BLOCK

Every value has a process of its own, in which it is set before anything imports it. On a busy machine compare the CPU
milliseconds. A constant of GPUs needs one.
"""

import subprocess
import sys
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer

from pipelines.runtime.launch import guarded
from rgtg.errors import UserError


class Constant(NamedTuple):
    """Where a constant is, the values to try, and the benchmark with its options."""

    module: str
    values: tuple[Any, ...]
    benchmark: str


_SMALL = "--threads 1 --hidden 256 --layers 4 --vocabulary 1000"
_DECODING = f"decoding --no-loops {_SMALL}"
_SHORT_PROMPTS = f"{_DECODING} --slots 16 --prompt-tokens 16,128 --new-tokens 2"
_LONG_PROMPTS = f"{_DECODING} --slots 4 --prompt-tokens 300,1000 --new-tokens 2"

CONSTANTS = {
    "BLOCK": Constant(
        "rgtg.models.attention",
        (32, 64, 128, 256, 512),
        "decoding --no-loops --threads 1 --hidden 128 --layers 4 --vocabulary 1000 --slots 8 "
        "--prompt-tokens 32,1024 --new-tokens 32",
    ),
    "GPU_VIEW_MULTIPLE": Constant("rgtg.models.attention", (64, 256, 1024), "decoding --no-loops --new-tokens 512"),
    "SHORT": Constant("rgtg.decoding.prefill", ((128,), (64, 128), (32, 64, 128), (64, 128, 256)), _SHORT_PROMPTS),
    "TOGETHER": Constant("rgtg.decoding.prefill", (128, 256, 512, 1024), _SHORT_PROMPTS),
    "CHUNK": Constant("rgtg.decoding.prefill", (64, 128, 256, 512), _LONG_PROMPTS),
    "CHUNK_MULTIPLE": Constant("rgtg.decoding.prefill", (8, 32, 128), _LONG_PROMPTS),
    "STRIDE": Constant("rgtg.decoding.cuda_graphs", (1, 4, 8, 16), "decoding --no-loops"),
    "MICRO_TOKENS": Constant(
        "rgtg.training.reward_trainer", (1024, 2048, 4096, 8192, 16384), f"training --pairs 32 {_SMALL}"
    ),
    "GPU_WIDTH_MULTIPLE": Constant("rgtg.training.reward_trainer", (8, 64, 256), "training"),
}


def main(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(CONSTANTS)}.")],
    value: Annotated[int | None, typer.Option(hidden=True, help="Only the value of this number.")] = None,
) -> None:
    """Run a benchmark once for each of several values of a constant."""
    if name not in CONSTANTS:
        raise UserError(f"there is no constant {name!r} to measure; there are {', '.join(CONSTANTS)}")
    constant = CONSTANTS[name]
    if value is None:
        for number, tried in enumerate(constant.values):
            print(f"{name} = {tried}", flush=True)
            subprocess.run([sys.executable, "-m", __spec__.name, name, "--value", str(number)], check=True)
        return
    setattr(import_module(constant.module), name, constant.values[value])
    kind, *options = constant.benchmark.split()
    benchmark = typer.Typer(add_completion=False)
    benchmark.command()(import_module(f"pipelines.benchmarks.{kind}").main)
    benchmark(options, standalone_mode=False)


if __name__ == "__main__":
    guarded(lambda: typer.run(main))
