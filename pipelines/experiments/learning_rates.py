"""Which peak learning rate a reward model is trained best with, by its size and by steps, with LoRA and without.

    python -m pipelines.experiments.learning_rates                                     the sandbox's model and pairs
    python -m pipelines.experiments.learning_rates --language DIR --pairs FILE ...     your own

For each rate a reward model is trained on the same pairs, in the same order. The table has the accuracy on the same
held-out pairs by the best score; 0.5 is guessing. The default of `train_reward.learning_rate` follows from it.
"""

from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
import typer

from pipelines.pairs_worker import Tokenize, raw_rows, read
from pipelines.runtime.launch import guarded
from rgtg import sandbox
from rgtg.errors import UserError
from rgtg.evaluation.stats import share_error
from rgtg.input_files import find
from rgtg.models.reward import RewardModel
from rgtg.preferences.tokenized import TokenizedPair
from rgtg.training.reward_trainer import RewardTrainer
from rgtg.training_settings import TrainReward

RATES = (1e-5, 1e-4, 3e-4, 5e-4, 1e-3, 3e-3)
HELD_OUT = 500


def main(
    language: Annotated[Path | None, typer.Option(help="Language model directory.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="File of preference pairs.")] = None,
    rates: Annotated[list[float] | None, typer.Option(help="Peak learning rates.")] = None,
    num_pairs: Annotated[int, typer.Option(min=1, help="Pairs to train on.")] = 4000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over them.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs of a step.")] = 16,
    max_length: Annotated[int, typer.Option(min=1, help="Tokens of a prompt and response.")] = 96,
    lora_rank: Annotated[int | None, typer.Option(min=1, help="Train adapters of this rank.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each rate, in other orders of the pairs.")] = 1,
) -> None:
    """Train with each learning rate and print the held-out accuracies."""
    made = sandbox.ensure()
    model = str(language or made.language)
    given = _pairs(pairs or made.pairs, model, max_length, num_pairs + HELD_OUT)
    settings = TrainReward(batch_size=batch_size, micro_batch_size=4, lora_rank=lora_rank)
    print(f"{model}, {len(given) - HELD_OUT:,} pairs x {epochs} in steps of {batch_size}, LoRA rank {lora_rank}")
    print(f"\n| learning rate | held-out accuracy (± {share_error(0.5, HELD_OUT):.3f}) |\n|---|---|", flush=True)
    for rate in rates or RATES:
        changed = settings.model_copy(update={"learning_rate": rate})
        found = [_accuracy(model, changed, given[HELD_OUT:], given[:HELD_OUT], epochs, seed) for seed in range(seeds)]
        print(f"| {rate:g} | {fmean(found):.3f} | {', '.join(f'{value:.3f}' for value in found)} |", flush=True)


def _pairs(path: Path, model: str, max_length: int, limit: int) -> list[TokenizedPair]:
    tokenize = Tokenize(model, False, max_length, "truncate", date.today())
    found: list[TokenizedPair] = []
    for file in find([str(path)]).files:
        for raw in raw_rows(file):
            found += [pair for _, pair in read(raw, tokenize) if isinstance(pair, TokenizedPair)]
            if len(found) >= limit:
                return found[:limit]
    if len(found) <= HELD_OUT:
        raise UserError(f"{str(path)!r} has {len(found)} pairs; give more than {HELD_OUT}, which are held out")
    return found


def _accuracy(
    model: str,
    settings: TrainReward,
    train: list[TokenizedPair],
    held_out: list[TokenizedPair],
    epochs: int,
    seed: int,
) -> float:
    reward = RewardModel.load(model, head="scalar", what="--language")
    per_epoch = -(-len(train) // settings.batch_size)
    trainer = RewardTrainer(reward, settings, per_epoch * epochs, torch.device("cpu"))
    for epoch in range(epochs):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1000 * seed + epoch)).tolist()
        for start in range(0, len(order), settings.batch_size):
            trainer.train_step([train[i] for i in order[start : start + settings.batch_size]])
    accuracy = trainer.evaluate(held_out[i : i + 16] for i in range(0, len(held_out), 16))
    return max(accuracy["by_score"].values())


if __name__ == "__main__":
    guarded(lambda: typer.run(main))
