"""The speed of training: the objectives, TRL's trainer, and one row per prefix as in published code."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from pipelines.benchmarks import models
from pipelines.benchmarks.timing import Seconds, measure
from rgtg.models.loading import resolve_device
from rgtg.models.reward import RewardModel
from rgtg.preferences.tokenized import TokenizedPair
from rgtg.report.printing import print_table
from rgtg.training.reward_trainer import RewardTrainer
from rgtg.training_settings import TrainReward


def main(
    hidden: Annotated[int, typer.Option(min=1, help="Hidden size of the model.")] = 256,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the model.")] = 6,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads of the model.")] = 8,
    kv_heads: Annotated[int, typer.Option(min=1, help="Key-value heads of the model.")] = 4,
    vocabulary: Annotated[int, typer.Option(min=1, help="Vocabulary size of the model.")] = 8192,
    pairs: Annotated[int, typer.Option(min=1, help="Preference pairs per turn.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Pairs per step.")] = 32,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Median length of a prompt; lengths are log-normal.")] = 48,
    response_tokens: Annotated[int, typer.Option(min=1, help="Median length of a response; also log-normal.")] = 64,
    max_length: Annotated[int, typer.Option(min=1, help="Longest prompt and response together.")] = 512,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; by default torch's number.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    repeats: Annotated[int, typer.Option(min=1, help="Turns per way; the median counts.")] = 3,
) -> None:
    """Measure the training of a reward model on this machine: pairs per second of each way.

    Weights and texts are random. All ways train in turns, in the same precision; their medians are compared.
    """
    if threads:
        torch.set_num_threads(threads)
    where = resolve_device(device)
    size = models.Size(hidden, layers, heads, kv_heads, vocabulary)
    given = _pairs(pairs, prompt_tokens, response_tokens, max_length, vocabulary)
    longest = [pair.length for pair in given]
    name = torch.cuda.get_device_name() if where.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(
        f"{size}, {pairs} pairs of up to {max(longest)} tokens (mean {sum(longest) / pairs:.0f}) on {name}", flush=True
    )
    with TemporaryDirectory() as folder:
        language = models.write(Path(folder), size)["language"]
        trainer = partial(_trainer, language, where, batch)
        ways: dict[str, tuple[Callable[[], Any], float]] = {
            "rgtg, partial objective": (partial(_train, trainer("partial"), given, batch), pairs),
            "rgtg, full objective": (partial(_train, trainer("full"), given, batch), pairs),
            "rgtg, partial, not grouped by length": (
                partial(_train, trainer("partial", micro_batch_size=batch), given, batch),
                pairs,
            ),
        }
        if find_spec("trl"):
            ways["TRL RewardTrainer"] = _trl(language, given, batch, max_length, where, Path(folder)), pairs
        else:
            print("TRL is not installed: pip install trl")
        # Only as many rows as one step of the others has, since there is one row per token.
        prefixes = [prefix for pair in given for prefix in _prefixes(pair)]
        rows = random.Random(0).sample(prefixes, min(2 * batch, len(prefixes)))
        done = pairs * len(rows) / len(prefixes)
        ways["a row for every prefix"] = partial(_train, trainer("full"), rows, batch), done
        _print(ways, measure({name: way for name, (way, _) in ways.items()}, repeats))


def _pairs(number: int, prompt: int, response: int, max_length: int, vocabulary: int) -> list[TokenizedPair]:
    """Pairs of random tokens with log-normal lengths, like those of conversations."""
    draw = random.Random(0)

    def text(median: int, longest: int) -> list[int]:
        length = min(longest, 1 + int(median * draw.lognormvariate(0, 0.7)))
        return [draw.randrange(models.FIRST, vocabulary) for _ in range(length)]

    half = max_length // 2
    return [TokenizedPair(text(prompt, half), text(response, half), text(response, half), 0) for _ in range(number)]


def _trainer(language: str, device: torch.device, batch: int, objective: str, **changes: Any) -> RewardTrainer:
    settings = TrainReward.model_validate(
        {"objective": objective, "batch_size": batch, "precision": "float32", **changes}
    )
    reward = RewardModel.load(language, head="scalar", what="--")
    return RewardTrainer(reward, settings, 10**6, device)


def _train(trainer: RewardTrainer, pairs: list[TokenizedPair], batch: int) -> None:
    for start in range(0, len(pairs), batch):
        trainer.train_step(pairs[start : start + batch])


def _prefixes(pair: TokenizedPair) -> list[TokenizedPair]:
    """One pair per prefix length, as in the data of published code."""
    longest = max(len(pair.chosen_ids), len(pair.rejected_ids))
    return [
        replace(pair, chosen_ids=pair.chosen_ids[:n], rejected_ids=pair.rejected_ids[:n])
        for n in range(1, longest + 1)
    ]


def _trl(
    language: str, pairs: list[TokenizedPair], batch: int, max_length: int, device: torch.device, folder: Path
) -> Callable[[], Any]:
    """TRL's trainer on the same texts, which it tokenizes before the measurement."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    def text(ids: list[int]) -> str:
        return " ".join(f"t{i}" for i in ids)

    rows = [
        {"prompt": text(p.prompt_ids), "chosen": f" {text(p.chosen_ids)}", "rejected": f" {text(p.rejected_ids)}"}
        for p in pairs
    ]
    trainer = RewardTrainer(
        language,
        args=RewardConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=batch,
            num_train_epochs=1,
            max_length=max_length,
            use_cpu=device.type == "cpu",
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(language),
    )
    return trainer.train


def _print(ways: dict[str, tuple[Callable[[], Any], float]], seconds: dict[str, Seconds]) -> None:
    table = Table(title="training", title_justify="left")
    for column in ("way", "pairs/s", "time of the full objective", "CPU ms a pair"):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=column == "way")
    rates = {name: pairs / seconds[name].wall for name, (_, pairs) in ways.items()}
    for name, (_, pairs) in ways.items():
        table.add_row(
            name,
            f"{rates[name]:.2f}",
            f"{rates['rgtg, full objective'] / rates[name]:.2f}",
            f"{1000 * seconds[name].cpu / pairs:.1f}",
        )
    print_table(table)
