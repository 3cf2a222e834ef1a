"""How a reward model is trained: the settings that a job and the library have in common."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from rgtg.config_section import (
    NO_OUTPUT,
    SANDBOX,
    Millions,
    PathOrUri,
    PathsOrUris,
    Positive,
    ScoreWay,
    Section,
    Thousands,
)
from rgtg.methods import Head, head_of


class TrainReward(Section):
    pairs: PathsOrUris = Field([SANDBOX], json_schema_extra=NO_OUTPUT)
    """Preference pairs: Parquet, JSONL or CSV files or directories, in any of the usual formats. The sandbox's are the
    default for its own language model alone."""
    eval_pairs: PathsOrUris | None = Field(None, json_schema_extra=NO_OUTPUT)
    """Held-out pairs; by default a part of `pairs`."""
    eval_fraction: float = Field(0.05, gt=0, lt=1)
    """Part of `pairs` held out where no `eval_pairs` are given."""
    init: PathOrUri | None = None
    """What training starts from: a language model or a reward model; by default `models.language`."""
    objective: str = "partial"
    """Bradley-Terry on all prefixes (PARGS) or on whole responses alone, or another paper's: see the README."""
    head: Head | None = None
    """What gives rewards: one number a prefix, or one for every next token; by default as the objective has it."""
    score: ScoreWay | None = None
    """How the rewards of a text's prefixes become its score: `final`, `mean`, `linear` (weighted by position) or
    `last-n`; by default what ranks the held-out pairs best, or is steadier and as good within a standard error."""
    after_end: Literal["hold", "eos"] = "hold"
    """Past the end of the shorter response: its final reward holds, or it is padded with EOS as published."""
    average: Literal["prefix", "pair"] = "prefix"
    """Mean over all prefixes of a batch as published (long pairs weigh more), or over its pairs."""
    min_prefix: Millions = 1
    """Prefixes shorter than this many tokens do not count."""
    epochs: Thousands = 1
    """Passes over the pairs."""
    max_length: Millions = 512
    """Tokens of prompt and response together."""
    overlong: Literal["truncate", "drop"] = "truncate"
    """What happens to a longer pair: its responses are cut on the right, or it is left out."""
    batch_size: Millions = 32
    """Pairs of an optimizer step, over all workers."""
    micro_batch_size: Millions | None = Field(None, json_schema_extra=NO_OUTPUT)
    """Pairs of one forward, of similar length; fewer save memory, the result is the same. Default: 8,192 tokens."""
    lora_rank: Thousands | None = None
    """Train low-rank adapters (LoRA) of this rank instead of all weights; they are merged where the model is saved."""
    lora_alpha: float = Field(16.0, gt=0)
    """Adapters count `lora_alpha / lora_rank` times."""
    gradient_checkpointing: bool = Field(False, json_schema_extra=NO_OUTPUT)
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more work."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate; by default by the size of the model and LoRA: see rgtg/training/README.md."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Part of the steps over which the learning rate rises; it falls to a tenth by a cosine after that."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of forward and backward; weights stay float32. `auto` is bfloat16 where the device is made for it."""
    num_workers: Thousands = Field(1, json_schema_extra=NO_OUTPUT)
    """Training workers, one device each."""
    strategy: Literal["ddp", "fsdp"] = Field("ddp", json_schema_extra=NO_OUTPUT)
    """Whole copies of the model on every worker (DDP), or sharded ones (FSDP2)."""
    threads: Thousands | None = Field(None, json_schema_extra=NO_OUTPUT)
    """CPU threads of a worker; by default the cores of its machine divided by the workers."""
    checkpoint_every: Positive = Field(500, json_schema_extra=NO_OUTPUT)
    """Optimizer steps between checkpoints."""
    eval_every: Positive | None = Field(None, json_schema_extra=NO_OUTPUT)
    """Optimizer steps between evaluations on the held-out pairs; by default there is one, at the end."""
    max_failures: int = Field(3, ge=0, le=10**6, json_schema_extra=NO_OUTPUT)
    """How often training goes on from its last checkpoint after a worker died."""

    @property
    def head_kind(self) -> Head:
        return head_of(self.objective, self.head)

    @field_validator("objective")
    @classmethod
    def _known(cls, objective: str) -> str:
        head_of(objective)
        return objective

    @model_validator(mode="after")
    def _head_fits(self) -> "TrainReward":
        head_of(self.objective, self.head)
        return self

    @model_validator(mode="after")
    def _batches_divide(self) -> "TrainReward":
        micro = self.num_workers * (self.micro_batch_size or 1)
        if self.batch_size % micro:
            raise ValueError(
                f"batch_size ({self.batch_size}) is not a multiple of num_workers x micro_batch_size ({micro})"
            )
        return self
