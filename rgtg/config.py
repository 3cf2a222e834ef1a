"""Every setting, validated: one frozen model a stage, defaults that run, a sentence a field."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from rgtg.config_section import (
    NO_OUTPUT,
    SANDBOX,
    Judge,
    Millions,
    PathOrUri,
    PathsOrUris,
    Positive,
    Section,
    Thousands,
    message_of,
    named,
)
from rgtg.decoding_settings import OF_METHOD, DecodingSettings
from rgtg.errors import UserError
from rgtg.gate_settings import Gates
from rgtg.methods import EXPORTS, METHODS, STRATEGIES
from rgtg.path_syntax import fault_of_root, is_endpoint, join
from rgtg.training_settings import TrainReward

OWN_JUDGE = "own"
"""In place of a judge's path: the second reward model of the run."""

OTHER_SAMPLES = 4  # unguided or opposed completions of a prompt, where pairs are made of them

# What a run on the sandbox's language model uses where the config says nothing: sizes for two cores and minutes.
SANDBOX_SETTINGS: dict[str, dict[str, Any]] = {
    "train_reward": {
        **{"batch_size": 16, "micro_batch_size": 4, "max_length": 96, "epochs": 3, "checkpoint_every": 250},
    },
    "nightly": {"compare_objectives": True},
}


class Run(Section):
    root: Annotated[str, named(fault_of_root)] = "runs"
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


class Generate(DecodingSettings):
    prompts: PathsOrUris = Field([SANDBOX], json_schema_extra=NO_OUTPUT)
    """Prompts: Parquet, JSONL or CSV files or directories with a column `prompt` (text or messages). The sandbox's are
    the default for its own language model alone."""
    beta: float | None = Field(None, ge=0)
    """Multiplier of the reward; by default the method's published value."""
    samples: Thousands = 4
    """Completions of a prompt by the method."""
    unguided_samples: int | None = Field(None, ge=0, le=10_000)
    """More completions of it by the language model itself, in the same batches; by default 4 where pairs are made of
    both (preferences.select)."""
    opposed_samples: int | None = Field(None, ge=0, le=10_000)
    """More of them under -beta, towards the opposite; by default 4 where pairs are made of both."""
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
        """The same by another method alone, whose own settings are its defaults but for `changes`."""
        alone = dict.fromkeys(OF_METHOD) | {"unguided_samples": 0, "opposed_samples": 0}
        return Generate.model_validate(self.model_dump() | alone | {"method": method} | changes)

    @property
    def samples_in_all(self) -> int:
        return self.samples + (self.unguided_samples or 0) + (self.opposed_samples or 0)

    @model_validator(mode="after")
    def _samples_differ(self) -> "Generate":
        preset = METHODS[self.method]
        if self.unguided_samples and not preset.needs_reward:
            raise ValueError(f"the method {self.method!r} is unguided already: raise samples, not unguided_samples")
        if self.opposed_samples and (preset.guidance == "none" or preset.segments):
            raise ValueError(f"the method {self.method!r} has no opposite; opposed_samples are for guidance of tokens")
        return self

    @model_validator(mode="after")
    def _actors_in_order(self) -> "Generate":
        if self.max_actors < self.min_actors:
            raise ValueError(f"max_actors ({self.max_actors}) is smaller than min_actors ({self.min_actors})")
        return self


class Preferences(Section):
    select: Literal[*STRATEGIES] | None = None  # type: ignore[valid-type]
    """Which completions make a pair: see the table in rgtg/preferences/README.md. By default the best guided one and
    the worst unguided one (`guided-unguided`); `best-worst` where the method is unguided."""
    truncated: Literal["never-chosen", "drop", "keep"] = "never-chosen"
    """Completions that were cut off at max_new_tokens: never chosen, left out, or taken as any other."""
    min_margin: float = Field(0.0, ge=0)
    """Pairs whose scores differ by no more than this are dropped; ties always are."""
    max_similarity: float = Field(0.9, ge=0, le=1)
    """Pairs more alike than this (token bigrams) are dropped: they teach a policy to avoid both texts."""
    length: Literal["free", "matched", "residual"] = "free"
    """`matched` pairs completions whose lengths differ by at most a fifth; `residual` ranks by the score without what
    its slope on log(tokens) explains."""
    test_fraction: float = Field(0.05, ge=0, lt=1)
    """Part of the prompts that goes to the test split."""
    export: Annotated[list[Literal[*EXPORTS]], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = []  # type: ignore[valid-type]
    """Layouts of other trainers to write the pairs in too, each to exports/<name>: sft, unpaired, chat-pairs, ranked,
    stepwise; see the table in rgtg/preferences/README.md."""
    judge: Judge | None = Field(OWN_JUDGE, json_schema_extra=NO_OUTPUT)
    """A second opinion: a reward model or any classifier of text, on all completions of a prompt; or an
    OpenAI-compatible endpoint, http(s)://, on its pair. `own` is the run's second reward model, if
    nightly.compare_objectives has trained one."""
    judge_prompts: int = Field(2000, ge=1, le=10**9, json_schema_extra=NO_OUTPUT)
    """Prompts that are judged, the same ones in every run."""
    judge_model: str | None = Field(None, json_schema_extra=NO_OUTPUT)
    """The model that an endpoint is asked for."""
    judge_key: str = Field("OPENAI_API_KEY", json_schema_extra=NO_OUTPUT)
    """The environment variable that holds the endpoint's key; the key itself is never written anywhere."""

    @model_validator(mode="after")
    def _endpoint_has_a_model(self) -> "Preferences":
        if self.judge and is_endpoint(self.judge) and not self.judge_model:
            raise ValueError("judge_model must name the model that the endpoint of judge is asked for")
        return self


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
    """Train a second reward model on the other objective, which judges the first one's pairs, and compare the accuracy
    of both by prefix length."""


class Config(Section):
    run: Run = Run()
    models: Models = Models()
    train_reward: TrainReward = TrainReward()
    generate: Generate = Generate()
    preferences: Preferences = Preferences()
    gates: Gates = Gates()
    evaluate: Evaluate = Evaluate()
    nightly: Nightly = Nightly()

    @model_validator(mode="after")
    def _pairs_have_completions(self) -> "Config":
        select = self.preferences.select
        pools = {STRATEGIES[select].chosen, STRATEGIES[select].rejected} if select else set()
        for pool in ("unguided", "opposed"):
            if pool in pools and getattr(self.generate, f"{pool}_samples") == 0:
                raise ValueError(f"preferences.select={select} needs generate.{pool}_samples above 0")
        return self

    @model_validator(mode="after")
    def _steps_have_rewards(self) -> "Config":
        if "stepwise" in self.preferences.export and self.models.reward_reads == "text":
            raise ValueError(
                "preferences.export=stepwise needs the reward of every token, and models.reward_reads=text gives one "
                "of the whole text"
            )
        return self

    def with_strategy(self, *, before: bool = False) -> "Config":
        """With what follows from other settings: which completions make a pair, and how many of each kind that takes.

        `before`: as runs were before there was a choice. Raises UserError where the method cannot give them.
        """
        select = self.preferences.select
        if select is None:
            guided = METHODS[self.generate.method].needs_reward and self.generate.unguided_samples != 0
            select = "guided-unguided" if guided and not before else "best-worst"
        pools = STRATEGIES[select]
        samples = {
            f"{pool}_samples": (OTHER_SAMPLES if pool in pools else 0) if given is None else given
            for pool, given in (
                ("unguided", self.generate.unguided_samples),
                ("opposed", self.generate.opposed_samples),
            )
        }
        try:
            generate = Generate.model_validate(self.generate.model_dump() | samples)
        except ValidationError as error:
            raise UserError(f"preferences.select={select}: {message_of(error, Generate)}") from error
        preferences = self.preferences.model_copy(update={"select": select})
        return self.model_copy(update={"generate": generate, "preferences": preferences})
