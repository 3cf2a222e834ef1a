"""How fast guided decoding is on this machine, beside transformers and the loops that papers published.

Models have random weights of a size of your choice; text means nothing, time does. All ways decode in turns, several
times over, and the medians are compared.
"""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from pipelines import cli
from rgtg.decoding import published
from rgtg.decoding.decoder import Decoder
from rgtg.decoding.request import Request
from rgtg.errors import UserError
from rgtg.models.loading import DTYPES, resolve_device, resolve_dtype
from rgtg.models.reward import HEAD

BETA = 1.0
RESCORED = 8  # tokens of the loop without a cache, which is too slow for more


@dataclass(frozen=True)
class Size:
    """Of one model; both are alike."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int


@dataclass(frozen=True)
class Way:
    """One way to decode a batch, and how many tokens it makes."""

    name: str
    run: Callable[[], Any]
    tokens: int


def main(
    hidden: Annotated[int, typer.Option(help="Hidden size of both models.")] = 512,
    layers: Annotated[int, typer.Option(help="Their layers.")] = 8,
    heads: Annotated[int, typer.Option(help="Their attention heads.")] = 8,
    kv_heads: Annotated[int, typer.Option(help="Their heads of keys and values.")] = 4,
    vocabulary: Annotated[int, typer.Option(help="Their vocabulary.")] = 32_000,
    k: Annotated[int, typer.Option(help="Candidates a step.")] = 10,
    slots: Annotated[str, typer.Option(help="Completions at once: one run for each.")] = "1,8,32",
    prompt_tokens: Annotated[str, typer.Option(help="Shortest and longest prompt.")] = "32,64",
    new_tokens: Annotated[int, typer.Option(help="Tokens of a completion.")] = 64,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default as torch has it.")] = None,
    repeats: Annotated[int, typer.Option(help="Turns of which the median counts.")] = 3,
    loops: Annotated[bool, typer.Option(help="Also the published loops, which are slow.")] = True,
) -> None:
    """Print tokens per second of every way, and what guidance costs."""
    if threads:
        torch.set_num_threads(threads)
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device is {device!r}; there are auto, cpu and cuda")
    where = resolve_device(device)
    if dtype not in (*DTYPES, "auto"):
        raise UserError(f"--dtype is {dtype!r}; there are {', '.join(DTYPES)} and auto")
    kind = resolve_dtype(dtype, where)
    size = Size(hidden, layers, heads, kv_heads, vocabulary)
    shortest, longest = _numbers(prompt_tokens, "--prompt-tokens", 2)
    batches = _numbers(slots, "--slots")
    disable_progress_bar()
    name = torch.cuda.get_device_name() if where.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{size}, k {k}, prompts of {shortest}-{longest}, {new_tokens} new tokens, {kind} on {name}")
    with TemporaryDirectory() as folder:
        places = _write_models(Path(folder), size)
        for batch in batches:
            prompts = _prompts(batch, shortest, longest, vocabulary)
            ways = _engine_ways(places, prompts, new_tokens, k, batch, where, kind)
            ways += _plain_ways(places, prompts, new_tokens, k, where, kind, loops)
            _print(batch, ways, _measure(ways, repeats, where))


def _numbers(text: str, option: str, count: int | None = None) -> list[int]:
    parts = text.split(",")
    numbers = [int(part) for part in parts if part.strip().isdigit()]
    if len(numbers) != len(parts) or 0 in numbers or (count and len(numbers) != count):
        raise UserError(f"{option} is {text!r}; write numbers with commas between them")
    return numbers


def _write_models(folder: Path, size: Size) -> dict[str, str]:
    """A language model, a reward model and one with a head of next tokens, with random weights."""
    vocab = {f"t{i}": i for i in range(size.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocab, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="t1", eos_token="t2", pad_token="t3")
    config = AutoConfig.for_model(
        "llama",
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 8 // 3 // 32 * 32,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    torch.manual_seed(0)
    made: dict[str, Any] = {"language": AutoModelForCausalLM.from_config(config)}
    made["next-token"] = AutoModelForCausalLM.from_config(config)
    setattr(made["next-token"].config, HEAD, "next-token")
    config.num_labels = 1
    made["reward"] = AutoModelForSequenceClassification.from_config(config)
    for name, model in made.items():
        model.save_pretrained(folder / name)
        wrapped.save_pretrained(folder / name)
    return {name: str(folder / name) for name in made}


def _prompts(batch: int, shortest: int, longest: int, vocabulary: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.linspace(shortest, longest, batch).long().tolist()
    return [torch.randint(4, vocabulary, (n,), generator=draw).tolist() for n in lengths]


def _engine_ways(
    places: dict[str, str], prompts: list[list[int]], new_tokens: int, k: int, slots: int, device: Any, dtype: Any
) -> list[Way]:
    """The product: unguided, by candidates, by next tokens."""
    ways = []
    names = next(name for name, value in DTYPES.items() if value == dtype)
    for name, method, reward in (
        ("rgtg, unguided", "unguided", None),
        ("rgtg, candidates (pargs)", "pargs", "reward"),
        ("rgtg, next token (farma)", "farma", "next-token"),
    ):
        decoder = Decoder.load(
            places["language"],
            reward and places[reward],
            method,
            beta=BETA,
            k=k,
            slots=slots,
            device=device.type,
            dtype=names,
        )
        decoder.engine.eos = decoder.engine.eos[:0]  # random text must not end by chance

        def run(decoder: Decoder = decoder) -> None:
            requests = [Request(str(i), ids, ids, 1, new_tokens, seed=0) for i, ids in enumerate(prompts)]
            decoder.engine.run(requests)

        ways.append(Way(name, run, len(prompts) * new_tokens))
    return ways


def _plain_ways(
    places: dict[str, str], prompts: list[list[int]], new_tokens: int, k: int, device: Any, dtype: Any, loops: bool
) -> list[Way]:
    """transformers' own generate, and the published loops; these with prompts of one length, the mean."""
    language: Any = AutoModelForCausalLM.from_pretrained(places["language"], dtype=dtype).to(device).eval()
    reward: Any = AutoModelForSequenceClassification.from_pretrained(places["reward"], dtype=dtype).to(device).eval()
    width = max(map(len, prompts))
    ids = torch.tensor([[3] * (width - len(p)) + p for p in prompts], device=device)
    mean = sum(map(len, prompts)) // len(prompts)
    equal = torch.tensor([(p * (mean // len(p) + 1))[:mean] for p in prompts], device=device)

    def generate() -> None:
        language.generate(
            ids,
            attention_mask=(ids != 3).long(),
            do_sample=True,
            top_k=k,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            pad_token_id=3,
        )

    ways = [Way("transformers generate, unguided", generate, len(prompts) * new_tokens)]
    if loops:
        ways.append(
            Way(
                "loop: a cached row a candidate",
                partial(published.reordered, language, reward, equal, BETA, k, new_tokens),
                len(prompts) * new_tokens,
            )
        )
    if loops and len(prompts) == 1:
        # Its cost grows with the text: these tokens stand in the middle of it.
        middle = torch.cat([equal, equal.repeat(1, 8)[:, : max(0, (new_tokens - RESCORED) // 2)]], dim=1)
        ways.append(
            Way(
                "loop: no cache",
                partial(published.rescoring, language, reward, middle, BETA, k, RESCORED),
                RESCORED,
            )
        )
    return ways


def _measure(ways: list[Way], repeats: int, device: Any) -> dict[str, tuple[float, float]]:
    """Median seconds of wall and of CPU time of each way, in turns; the first turn warms up and does not count."""
    wall: dict[str, list[float]] = {way.name: [] for way in ways}
    cpu: dict[str, list[float]] = {way.name: [] for way in ways}
    for turn in range(repeats + 1):
        for way in ways:
            began, used = time.perf_counter(), time.process_time()
            way.run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                wall[way.name].append(time.perf_counter() - began)
                cpu[way.name].append(time.process_time() - used)
    return {name: (statistics.median(wall[name]), statistics.median(cpu[name])) for name in wall}


def _print(slots: int, ways: list[Way], seconds: dict[str, tuple[float, float]]) -> None:
    rates = {way.name: way.tokens / seconds[way.name][0] for way in ways}
    unguided = rates[ways[0].name]
    table = Table(title=f"{slots} at once", title_justify="left")
    for column in ("way", "tokens/s", "CPU ms a token", "cost of unguided"):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=column == "way")
    for way in ways:
        cpu = 1000 * seconds[way.name][1] / way.tokens
        table.add_row(way.name, f"{rates[way.name]:,.1f}", f"{cpu:.2f}", f"{unguided / rates[way.name]:.2f}")
    Console().print(table)
    if torch.cuda.is_available():
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the device")
    else:
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    cli.guarded(lambda: typer.run(main))
