"""The overhead of Ray and of writing: the `generate` job next to the bare engine, many prompts, several actors."""

import resource
import statistics
import threading
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
import typer

from pipelines import generate, prompts, train_reward
from pipelines.benchmarks.timing import numbers
from pipelines.generate_actor import Generator
from pipelines.runtime import ray_session
from pipelines.runtime.job_context import JobContext
from rgtg import config_file, table_files
from rgtg.config import Config, Generate
from rgtg.decoding.decoder import Completion, Decoder
from rgtg.methods import METHODS

TOKENS = 64  # per completion of a simulated device


class Instant(Generator):
    """An actor without a model: every prompt gets the same completions at once."""

    wait = 0.0  # seconds per prompt on its device

    def __init__(
        self, models: Any, reward: Any, settings: Any, seed: int, progress: Any, day: Any = None, digests: Any = None
    ) -> None:
        self.settings, self.progress, self.device = settings, progress, threading.Lock()
        progress.add.remote(actors=1)

    def _submit(self, row: dict[str, Any]) -> Future:
        with self.device:
            threading.Event().wait(self.wait)
        ids = list(range(TOKENS))
        same = Completion(
            *("text", ids, TOKENS, "length", 0.0, 0.0, [0.0] * TOKENS, 0.0, 0.0, TOKENS, TOKENS, "pargs", 2.0)
        )
        future: Future = Future()
        future.set_result([same] * self.settings.samples_in_all)
        return future


class Waiting(Instant):
    """The same with a device that takes time."""

    wait = 0.02


def main(
    num_prompts: Annotated[int, typer.Option(min=1, help="Prompts of both, with four completions each.")] = 512,
    method: Annotated[str, typer.Option(help="The method.")] = "pargs",
    repeats: Annotated[int, typer.Option(min=1, help="Turns; the median counts.")] = 3,
    rows: Annotated[str, typer.Option(help="Prompts for a simulated device that takes no time.")] = "1000,100000",
    actors: Annotated[str, typer.Option(help="Simulated devices; one run for each number.")] = "1,2,4",
    blocks: Annotated[int, typer.Option(min=1, help="Blocks of prompts per simulated device.")] = 16,
) -> None:
    """Measure the `generate` job on this machine: its tokens per second next to the bare engine's, on the sandbox.

    Then the overhead per row, on a device that takes no time, and the rate of several actors, on devices that wait.
    """
    with TemporaryDirectory() as folder:
        most = max(numbers(actors, "--actors"))
        ray_session.start(_config(folder, "ray", f"generate.max_actors={most}"))
        _compare_with_engine(folder, num_prompts, method, repeats)
        for number in numbers(rows, "--rows"):
            _many_rows(folder, number)
        for number in numbers(actors, "--actors"):
            _several_actors(folder, number, blocks)
        ray.shutdown()


def _compare_with_engine(folder: str, num_prompts: int, method: str, repeats: int) -> None:
    config = _config(folder, "sandbox", f"generate.method={method}", "train_reward.epochs=1")
    opened = JobContext.open(config, pairs=True, prompts=True)
    config, directory = opened.config, opened.directory
    prompts.run_stage(opened)
    reward = train_reward.reward_of(opened) if METHODS[method].needs_reward else None
    torch.set_num_threads(config.generate.threads)
    decoder = Decoder.load(
        config.models.language,
        reward,
        config.generate,
        device=config.models.device,
    )
    table = pa.concat_tables(table_files.read_tables(directory.path("prompts"))).slice(0, num_prompts)
    bare, job = [], []
    for turn in range(repeats):
        bare.append(_bare(decoder, config, table))
        counts = generate.complete(
            opened, reward, directory.path(f"turn-{turn}"), directory.path(f"ids-{turn}"), num_prompts
        )
        job.append(counts["decoded_tokens"] / counts["decode_seconds"])
    ours, engine = statistics.median(job), statistics.median(bare)
    print(
        f"{num_prompts * config.generate.samples:,} completions by {method}: the job {ours:,.0f} tokens/s (from when "
        f"its actor is ready to the last row), the bare engine {engine:,.0f}: {ours / engine:.2f}",
        flush=True,
    )


def _bare(decoder: Decoder, config: Config, table: pa.Table) -> float:
    """Tokens per second of one engine in this process."""
    began = monotonic()
    options = {"samples": config.generate.samples, "max_new_tokens": config.generate.max_new_tokens, "seed": 0}
    requests = [
        decoder.request(row["prompt"], prompt_id=row["prompt_id"], **options)
        for row in table.select(["prompt", "prompt_id"]).to_pylist()
    ]
    decoder.engine.run(requests)
    tokens = sum(c.num_tokens for request in requests for c in decoder.completions(request))
    return tokens / (monotonic() - began)


def _many_rows(folder: str, number: int) -> None:
    seconds, whole = _simulated(folder, number, 1, Instant)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(
        f"{number:,} prompts on a device that takes no time: {1000 * seconds / number:.2f} ms a prompt "
        f"({whole:.1f} s in all, with start and intake of prompts), driver's memory at most {memory:,.0f} MiB",
        flush=True,
    )


def _several_actors(folder: str, number: int, blocks: int) -> None:
    each = blocks * Generate().block_rows
    seconds, _ = _simulated(folder, each * number, number, Waiting)
    print(
        f"{number} simulated device(s) of {1 / Waiting.wait:.0f} prompts/s: {each * number / seconds:,.1f} prompts/s, "
        f"{each * Waiting.wait / seconds:.2f} of their maximum",
        flush=True,
    )


def _simulated(folder: str, number: int, actors: int, actor: type[Instant]) -> tuple[float, float]:
    """Seconds of decoding, and of the whole job, on simulated devices."""
    run = f"{actor.__name__}-{number}-{actors}"
    source = Path(folder, f"{run}.parquet")
    pq.write_table(pa.table({"prompt": [f"prompt number {i} of {number}" for i in range(number)]}), source)
    config = _config(
        folder, run, f"generate.prompts={source}", f"generate.min_actors={actors}", f"generate.max_actors={actors}"
    )
    began = monotonic()
    job = JobContext.open(config, models=False, prompts=True)
    prompts.run_stage(job)
    target, checkpoint = job.directory.path("completions"), job.directory.path("_checkpoint")
    counts = generate.complete(job, None, target, checkpoint, actor=actor)
    assert counts["rows"] == number
    return counts["decode_seconds"], monotonic() - began


def _config(folder: str, run: str, *settings: str) -> Config:
    alone = "preferences.select=best-worst"  # guided completions, and no unguided ones beside them
    return config_file.load(None, [f"run.root={folder}", f"run.id={run}", "models.device=cpu", alone, *settings])
