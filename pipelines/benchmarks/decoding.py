"""The speed of guided decoding, next to transformers and the loops that papers published."""

import itertools
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pipelines.benchmarks import models, published
from pipelines.benchmarks.timing import Seconds, measure, numbers
from rgtg.decoding.candidate_rewards import CandidateGuidance, NextTokenGuidance
from rgtg.decoding.decoder import Decoder
from rgtg.decoding.request import Request
from rgtg.errors import UserError
from rgtg.models.cache import SlotCache
from rgtg.models.loading import DTYPES, resolve_device, resolve_dtype, slow_bfloat16
from rgtg.report.printing import print_table

BETA = 1.0
RESCORED = 8  # tokens that the loop without a cache decodes; it is too slow for more
# Log-normal lengths of completions: the largest in multiples of the median, and the standard deviation of the log.
LONGEST, SPREAD = 4.7, 0.8
PER_SLOT = 10  # completions of such lengths


@dataclass(frozen=True)
class Task:
    """The models, prompts and device of one measurement, shared by all ways to decode."""

    paths: dict[str, str]  # of the models
    size: models.Size
    prompt_tokens: tuple[int, int]  # the shortest and the longest
    new_tokens: int
    k: int
    device: torch.device
    dtype: torch.dtype
    cuda_graphs: bool

    def prompts(self, rows: int, seed: int) -> list[list[int]]:
        return models.texts(torch.linspace(*self.prompt_tokens, rows).long().tolist(), self.size.vocabulary, seed)

    def decoder(self, method: str, slots: int) -> Decoder:
        """The decoder of rgtg for a method, without EOS, so that no text ends by chance."""
        rewards = {"pargs": "reward", "farma": "next-token"}
        decoder = Decoder.load(
            self.paths["language"],
            self.paths[rewards[method]] if method in rewards else None,
            method,
            beta=BETA,
            k=self.k,
            slots=slots,
            device=self.device.type,
            cuda_graphs=self.cuda_graphs,
            dtype=next(name for name, value in DTYPES.items() if value == self.dtype),
        )
        decoder.engine.eos = decoder.engine.eos[:0]
        return decoder


@dataclass(frozen=True)
class Way:
    """One way to decode a batch."""

    name: str
    run: Callable[[int], Any]  # decodes completions of that many tokens
    tokens: int  # per completion
    rows: int
    # A step reads all of these caches and weights.
    caches: list[SlotCache] = field(default_factory=list)
    models: list[torch.nn.Module] = field(default_factory=list)


def main(
    hidden: Annotated[int, typer.Option(min=1, help="Hidden size of both models.")] = 512,
    layers: Annotated[int, typer.Option(min=1, help="Layers of both models.")] = 8,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads of both models.")] = 8,
    kv_heads: Annotated[int, typer.Option(min=1, help="Key-value heads of both models.")] = 4,
    vocabulary: Annotated[int, typer.Option(min=1, help="Vocabulary size of both models.")] = 32_000,
    k: Annotated[int, typer.Option(min=1, help="Candidates per step.")] = 10,
    slots: Annotated[str, typer.Option(help="Concurrent completions; one run for each number.")] = "1,8,32",
    prompt_tokens: Annotated[str, typer.Option(help="Shortest and longest prompt in tokens.")] = "32,64",
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens per completion.")] = 64,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; by default torch's number.")] = None,
    cuda_graphs: Annotated[bool, typer.Option(help="On a GPU, run the steps of rgtg as CUDA graphs.")] = True,
    repeats: Annotated[int, typer.Option(min=1, help="Turns per way; the median counts.")] = 3,
    loops: Annotated[bool, typer.Option(help="Also measure the published loops, which are slow.")] = True,
    refill: Annotated[
        bool, typer.Option(help="Also measure completions of many lengths, in refilled slots and in static batches.")
    ] = False,
) -> None:
    """Measure guided decoding on this machine: tokens per second of each way, and the cost of guidance.

    Models have random weights. All ways decode in turns; their medians are compared.
    """
    if threads:
        torch.set_num_threads(threads)
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    if kind == torch.bfloat16 and (warning := slow_bfloat16("--dtype bfloat16", where)):
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    if k > vocabulary:
        raise UserError(f"--k is {k}, more than the vocabulary of {vocabulary}; lower --k")
    size = models.Size(hidden, layers, heads, kv_heads, vocabulary)
    shortest, longest = numbers(prompt_tokens, "--prompt-tokens", 2)
    batches = numbers(slots, "--slots")
    name = torch.cuda.get_device_name() if where.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{size}, k {k}, prompts of {shortest}-{longest}, {new_tokens} new tokens, {kind} on {name}", flush=True)
    with TemporaryDirectory() as folder:
        task = Task(
            models.write(Path(folder), size), size, (shortest, longest), new_tokens, k, where, kind, cuda_graphs
        )
        for batch in batches:
            ways = [*_engine_ways(task, batch), *_plain_ways(task, batch, loops)]
            both = {f"{way.name} {n}": partial(way.run, n) for way in ways for n in (1, way.tokens)}
            _print(task, batch, ways, measure(both, repeats))
            if refill and batch > 1:
                _refill(task, batch, repeats)


def _requests(prompts: list[list[int]], lengths: list[int]) -> list[Request]:
    return [
        Request(str(i), ids, ids, 1, length, seed=0)
        for i, (ids, length) in enumerate(zip(prompts, lengths, strict=True))
    ]


def _engine_ways(task: Task, rows: int) -> list[Way]:
    """Decoding by rgtg: unguided, guided by candidates, guided by a token-level reward head."""
    ways = []
    for name, method in (
        ("rgtg, unguided", "unguided"),
        ("rgtg, candidates (pargs)", "pargs"),
        ("rgtg, next token (farma)", "farma"),
    ):
        decoder = task.decoder(method, rows)
        seeds = itertools.count()  # new prompts each time, since those of the last turn are still cached

        def run(tokens: int, decoder: Decoder = decoder, seeds: Any = seeds) -> None:
            decoder.engine.run(_requests(task.prompts(rows, next(seeds)), [tokens] * rows))

        engine, guidance = decoder.engine, decoder.engine.guidance
        caches, read = [engine.language.slots.cache], [engine.language.model]
        if isinstance(guidance, CandidateGuidance):
            caches, read = [*caches, guidance.slots.cache], [*read, guidance.reward_model.backbone]
        if isinstance(guidance, NextTokenGuidance):
            caches, read = [*caches, guidance.model.slots.cache], [*read, guidance.reward_model.backbone]
        ways.append(Way(name, run, task.new_tokens, rows, caches, read))
    return ways


def _plain_ways(task: Task, rows: int, loops: bool) -> list[Way]:
    """`generate` of transformers, and the published loops. These get prompts of the mean length."""
    language: Any = AutoModelForCausalLM.from_pretrained(
        task.paths["language"], dtype=task.dtype, use_safetensors=True
    )
    reward: Any = AutoModelForSequenceClassification.from_pretrained(
        task.paths["reward"], dtype=task.dtype, use_safetensors=True
    )
    language, reward = language.to(task.device).eval(), reward.to(task.device).eval()
    prompts = task.prompts(rows, seed=0)
    width = max(map(len, prompts))
    ids = torch.tensor([[models.PAD] * (width - len(p)) + p for p in prompts], device=task.device)
    mean = sum(map(len, prompts)) // rows
    equal = torch.tensor([(p * (mean // len(p) + 1))[:mean] for p in prompts], device=task.device)

    def generate(tokens: int) -> None:
        language.generate(
            ids,
            attention_mask=(ids != models.PAD).long(),
            do_sample=True,
            top_k=task.k,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=models.PAD,
        )

    ways = [Way("transformers generate, unguided", generate, task.new_tokens, rows)]
    if loops:
        loop = partial(published.reordered, language, reward, equal, BETA, task.k)
        ways.append(Way("loop: a cached row a candidate", loop, task.new_tokens, rows))
    if loops and rows == 1:
        # Its cost grows with the length of the text, so the middle tokens are measured.
        middle = torch.cat([equal, equal.repeat(1, 8)[:, : max(0, (task.new_tokens - RESCORED) // 2)]], dim=1)
        loop = partial(published.rescoring, language, reward, middle, BETA, task.k)
        ways.append(Way("loop: no cache", loop, min(RESCORED, task.new_tokens), rows))
    return ways


def _refill(task: Task, slots: int, repeats: int) -> None:
    """Completions of log-normal lengths: in slots that are refilled, and in batches that wait for the longest."""
    draw = torch.Generator().manual_seed(0)
    spread = torch.randn(PER_SLOT * slots, generator=draw).mul(SPREAD).exp().clamp(max=LONGEST)
    lengths = spread.mul(task.new_tokens).ceil().long().tolist()
    prompts = task.prompts(len(lengths), seed=0)
    decoder = task.decoder("pargs", slots)

    def refilled() -> None:
        decoder.engine.run(_requests(prompts, lengths))

    def static() -> None:
        requests = _requests(prompts, lengths)
        for start in range(0, len(requests), slots):
            decoder.engine.run(requests[start : start + slots])

    seconds = measure({"refilled": refilled, "static": static}, repeats)
    print(
        f"{len(lengths)} guided completions of {min(lengths)}-{max(lengths)} tokens, mean "
        f"{sum(lengths) / len(lengths):.0f}: {sum(lengths) / seconds['refilled'].wall:,.1f} tokens/s in refilled "
        f"slots, {sum(lengths) / seconds['static'].wall:,.1f} in static batches "
        f"({seconds['static'].wall / seconds['refilled'].wall:.2f} times as fast)",
        flush=True,
    )


def _bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy on the device reads and writes."""
    source = torch.empty(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = measure({"copy": lambda: [target.copy_(source) for _ in range(10)]}, 5)["copy"].wall
    return 20 * source.numel() / seconds


def _bytes_of_step(task: Task, way: Way) -> float:
    """Bytes that a step must read: all weights but the embeddings, and the keys and values at half a completion."""
    weights = sum(
        parameter.numel() * parameter.element_size()
        for model in way.models
        for name, parameter in model.named_parameters()
        if "embed_tokens" not in name
    )
    live = sum(task.prompt_tokens) / 2 + way.tokens / 2
    return weights + live * sum(2 * cache.keys[:, :, :, :1].nbytes for cache in way.caches)


def _print(task: Task, slots: int, ways: list[Way], seconds: dict[str, Seconds]) -> None:
    """Print for each way the time of the prefill (with one token), of the other tokens, and of both."""
    bandwidth = _bandwidth(task.device) if task.device.type == "cuda" else None
    table = Table(title=f"{slots} at once", title_justify="left")
    columns = ["way", "tokens/s", "cost of unguided", "prefill s", "decode tokens/s", "CPU ms a token"]
    for column in [*columns, *(["of the bound"] if bandwidth else [])]:
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=column == "way")
    unguided = 0.0
    for way in ways:
        first, whole = seconds[f"{way.name} 1"], seconds[f"{way.name} {way.tokens}"]
        rate = way.rows * way.tokens / whole.wall
        unguided = unguided or rate
        # Steps per second, if they take long enough to be told from the prefill.
        steps = (way.tokens - 1) / (whole.wall - first.wall) if whole.wall > 1.05 * first.wall else None
        row = [way.name, f"{rate:,.1f}", f"{unguided / rate:.2f}", f"{first.wall:.3f}"]
        row.append(f"{way.rows * steps:,.1f}" if steps else "-")
        row.append(f"{1000 * whole.cpu / (way.rows * way.tokens):.2f}")
        if bandwidth:
            row.append(f"{steps * _bytes_of_step(task, way) / bandwidth:.2f}" if steps and way.models else "")
        table.add_row(*row)
    print_table(table)
    if torch.cuda.is_available():
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the device", flush=True)
    else:
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB", flush=True)
