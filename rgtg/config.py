"""Every setting, validated: one frozen model a stage, defaults that run, a sentence a field."""

from collections.abc import Callable
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from rgtg.config_section import NO_OUTPUT, Millions, Positive, Section, Thousands
from rgtg.decoding_settings import OF_METHOD, DecodingSettings
from rgtg.errors import redacted
from rgtg.methods import Head, head_of
from rgtg.path_syntax import fault, fault_of_judge, fault_of_root, join

SANDBOX = "sandbox"
"""In place of a path: the embedded world of text, its language model, pairs or prompts."""

# What a run on the sandbox's language model uses where the config says nothing: sizes for two cores and minutes.
SANDBOX_SETTINGS: dict[str, dict[str, Any]] = {
    "train_reward": {"learning_rate": 1e-3, "max_length": 96, "epochs": 2, "checkpoint_every": 50},
    "nightly": {"compare_objectives": True},
}


def _named(fault_of: Callable[[str], str | None]) -> AfterValidator:
    def check(path: str) -> str:
        if found := fault_of(path):
            shown = redacted(path).partition("?" if "://" in path else "\0")[0]  # a query may hold anything
            raise ValueError(f"{shown[:200]!r} {found}")
        return path

    return AfterValidator(check)


PathOrUri = Annotated[str, _named(fault)]
PathsOrUris = Annotated[
    list[PathOrUri], BeforeValidator(lambda v: [v] if isinstance(v, str) else v), Field(min_length=1)
]
Judge = Annotated[str, _named(fault_of_judge)]


class Run(Section):
    root: Annotated[str, _named(fault_of_root)] = "runs"
    """Where run directories are made: a local path or s3://bucket/prefix."""
    id: str = Field(
        default_factory=lambda: date.today().isoformat(), pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128
    )
    """Name of the run; today's date by default, so that tonight's job started again goes on with tonight's run."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of everything random. A completion depends on it, its prompt and its sample number alone."""

    @property
    def directory(self) -> str:
        return join(self.root, self.id)


class Models(Section):
    language: PathOrUri = SANDBOX
    """The language model: a directory (local or s3://), a hub id, or `sandbox`."""
    reward: PathOrUri | None = None
    """A reward model to use as it is; by default the run trains its own."""
    reward_reads: Literal["tokens", "text"] = "tokens"
    """`text`: `reward` may be any classifier, with any tokenizer; each candidate's text is read anew, slowly."""
    ensemble: Annotated[list[PathOrUri], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = []
    """More reward models beside `reward`; what all of them give is combined to one reward."""
    combine: Literal["mean", "min", "lower-bound"] = "mean"
    """How an ensemble's rewards are combined; the lower bound is their mean less `bound_width` deviations."""
    bound_width: float = Field(1.0, ge=0)
    """Standard deviations of an ensemble's rewards below their mean."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models run; `auto` takes a GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of decoding; `auto` is bfloat16 on a GPU that has it, float32 elsewhere."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model."""

    @model_validator(mode="after")
    def _ensemble_fits(self) -> "Models":
        if self.ensemble and (not self.reward or self.reward_reads == "text"):
            raise ValueError("an ensemble is beside models.reward, and of reward models that read tokens")
        if self.reward_reads == "text" and not self.reward:
            raise ValueError("reward_reads=text is for a reward model of your own: give it as models.reward")
        return self

    @property
    def rewards(self) -> list[str]:
        """The reward models that the config names."""
        return [self.reward, *self.ensemble] if self.reward else []


class TrainReward(Section):
    pairs: PathsOrUris = Field([SANDBOX], json_schema_extra=NO_OUTPUT)
    """Preference pairs: Parquet or JSONL files or directories, in any of the usual formats."""
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
    learning_rate: float = Field(1e-5, gt=0)
    """Peak learning rate."""
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


class Generate(DecodingSettings):
    prompts: PathsOrUris = Field([SANDBOX], json_schema_extra=NO_OUTPUT)
    """Prompts: Parquet or JSONL files or directories with a column `prompt` (text or messages)."""
    beta: float | None = Field(None, ge=0)
    """Multiplier of the reward; by default the method's published value."""
    samples: Thousands = 4
    """Completions of a prompt."""
    max_new_tokens: Millions = 64
    """Longest completion in tokens."""
    max_prompt_tokens: Millions = 2048
    """A longer prompt is a row with an error: every slot of an actor needs room for the longest one."""
    incremental: bool = Field(False, json_schema_extra=NO_OUTPUT)
    """Go on with a run whose prompts have grown by files beside the others: only the new ones are completed."""
    max_error_rate: float = Field(0.1, ge=0, le=1, json_schema_extra=NO_OUTPUT)
    """A run in which a larger part of the prompts has an error fails, with all rows written."""
    block_rows: Millions = Field(64, json_schema_extra=NO_OUTPUT)
    """Prompts of a block: the unit of work, of commit and of retry, and the rows of an output file."""
    min_actors: Thousands = Field(1, json_schema_extra=NO_OUTPUT)
    """Actors to start with; each holds both models on one device."""
    max_actors: Thousands = Field(1, json_schema_extra=NO_OUTPUT)
    """Actors that the job may grow to."""
    gpus_per_actor: float = Field(1.0, ge=0.01, le=1, json_schema_extra=NO_OUTPUT)
    """Part of a GPU that an actor takes: with 0.5, two share one and its memory. On a CPU it means nothing."""
    threads: Thousands = Field(1, json_schema_extra=NO_OUTPUT)
    """CPU threads, and so cores, of an actor. Another number rounds differently; above two, so does another place."""

    def by(self, method: str, **changes: Any) -> "Generate":
        """The same by another method, whose own settings are its defaults but for `changes`."""
        return Generate.model_validate(self.model_dump() | dict.fromkeys(OF_METHOD) | {"method": method} | changes)

    @model_validator(mode="after")
    def _actors_in_order(self) -> "Generate":
        if self.max_actors < self.min_actors:
            raise ValueError(f"max_actors ({self.max_actors}) is smaller than min_actors ({self.min_actors})")
        return self


class Preferences(Section):
    min_margin: float = Field(0.0, ge=0)
    """Pairs whose rewards differ by no more than this are dropped; ties always are."""
    test_fraction: float = Field(0.05, ge=0, lt=1)
    """Part of the prompts that goes to the test split."""


class Evaluate(Section):
    methods: Annotated[list[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v), Field(min_length=1)] = [
        "unguided",
        "args",
        "pargs beta=0.5,1,2,4",
        "best-of-n",
    ]
    """Ways to complete the prompts, each a method with settings of its own: `pargs beta=1,2 objective=full` is two."""
    num_prompts: Positive = 256
    """So many of the prompts, the first ones, are completed in each way."""
    judges: Annotated[list[Judge], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = []
    """Who judges besides: reward models (any classifier of text), or an OpenAI-compatible endpoint, http(s)://."""
    judge_model: str | None = None
    """The model that an endpoint is asked for."""
    judge_key: str = "OPENAI_API_KEY"
    """The environment variable that holds the endpoint's key; the key itself is never written anywhere."""


class Nightly(Section):
    baseline_prompts: int = Field(128, ge=0, le=10**9)
    """Prompts that are also completed unguided, to compare with; 0 leaves the comparison out."""
    compare_objectives: bool = False
    """Train a second reward model on the other objective and compare the accuracy of both by prefix length."""


class Config(Section):
    run: Run = Run()
    models: Models = Models()
    train_reward: TrainReward = TrainReward()
    generate: Generate = Generate()
    preferences: Preferences = Preferences()
    evaluate: Evaluate = Evaluate()
    nightly: Nightly = Nightly()
