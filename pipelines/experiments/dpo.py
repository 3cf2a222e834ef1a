"""A fine-tuned model to compare guidance with: DPO (arXiv 2305.18290) by TRL on the same pairs.

    pip install trl
    python -m pipelines.experiments.dpo --out DIR        the sandbox's language model on the sandbox's pairs
    rgtg evaluate "evaluate.methods=[unguided, pargs, unguided language=DIR]"

TRL is not a dependency: only this file needs it.
"""

from pathlib import Path
from typing import Annotated

import datasets
import pyarrow as pa
import torch
import typer

from pipelines.runtime.launch import guarded
from rgtg import sandbox
from rgtg.config_section import SANDBOX
from rgtg.errors import UserError
from rgtg.models.loading import load_tokenizer, load_weights
from rgtg.parquet import open_parquet


def main(
    out: Annotated[Path, typer.Option(help="Directory of the fine-tuned model.")],
    language: Annotated[str, typer.Option(help="Language model directory.")] = SANDBOX,
    pairs: Annotated[str, typer.Option(help="Parquet with prompt, chosen and rejected as text.")] = SANDBOX,
    beta: Annotated[float, typer.Option(help="Strength of the KL penalty that keeps the model near its start.")] = 0.1,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-4,
    epochs: Annotated[int, typer.Option(help="Passes over the pairs.")] = 2,
    max_length: Annotated[int, typer.Option(help="Longest prompt and response in tokens.")] = 96,
) -> None:
    """Fine-tune by DPO, in float32 on this machine."""
    try:
        from trl import DPOConfig, DPOTrainer
    except ImportError as error:
        raise UserError("this experiment needs TRL: pip install trl") from error
    from transformers import AutoModelForCausalLM

    if SANDBOX in (language, pairs):
        world = sandbox.ensure()
        language = str(world.language) if language == SANDBOX else language
        pairs = str(world.pairs) if pairs == SANDBOX else pairs
    with pa.OSFile(pairs) as file:
        table = open_parquet(file).read(["prompt", "chosen", "rejected"])
    settings = DPOConfig(
        output_dir=str(out / "_train"),
        beta=beta,
        learning_rate=learning_rate,
        num_train_epochs=epochs,
        max_length=max_length,
        per_device_train_batch_size=32,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        logging_steps=50,
        save_strategy="no",
        report_to=[],
        bf16=False,
        seed=0,
    )
    trainer = DPOTrainer(
        model=load_weights(AutoModelForCausalLM, language, "language", device="cpu", dtype=torch.float32),
        args=settings,
        train_dataset=datasets.Dataset.from_dict(table.to_pydict()),
        processing_class=load_tokenizer(language, "language"),
    )
    trainer.train()
    trainer.save_model(str(out))
    print(f"the fine-tuned model is in {out}")


if __name__ == "__main__":
    guarded(lambda: typer.run(main))
