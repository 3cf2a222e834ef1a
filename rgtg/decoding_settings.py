"""How completions are decoded: the settings that a job and the library have in common."""

from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from rgtg.config_section import NO_OUTPUT, Millions, ScoreWay, Section, Thousands, message_of
from rgtg.errors import UserError
from rgtg.methods import METHODS, Segments, with_segments

# Settings that are None by default, which stands for the method's own value.
OF_METHOD = ("beta", "k", "proposals", "segment_tokens", "segment_entropy", "target_reward")


class DecodingSettings(Section):
    method: str = "pargs"
    """How guidance steers: see the table of methods in rgtg/decoding/README.md."""
    beta: float | None = None
    """Multiplier of the reward; by default the method's published value."""
    temperature: float = Field(1.0, gt=0)
    """Divides the whole score of a candidate, log-probability and reward; a greedy method does not feel it."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Keep only the most probable candidates that together have this probability; the first one always counts."""
    k: int | None = Field(None, ge=0, le=10**9)
    """Candidates a step, the top-k tokens; by default the method's published value. 0 is the whole vocabulary."""
    proposals: Thousands | None = None
    """Methods that search: how often a segment (or the completion, best-of-n) is proposed at most."""
    segment_tokens: Millions | None = None
    """Methods that search: tokens of a segment, or its longest where entropy ends it."""
    segment_entropy: float | None = Field(None, ge=0)
    """cards: a segment ends where the next token has this entropy, in nats."""
    target_reward: float | None = None
    """cards and segments: the reward they aim at; another one for every reward model, so it has no default."""
    score: ScoreWay | None = None
    """How the rewards of a text's prefixes become its score, which ranks whole texts: `final`, `mean`, `linear` or
    `last-n`; by default as the reward model says."""
    slots: Thousands = Field(32, json_schema_extra=NO_OUTPUT)
    """Completions that are decoded at once; memory grows with them."""
    max_prompt_tokens: Millions | None = None
    """A longer prompt is refused: every slot needs room for the longest one."""
    cuda_graphs: bool = Field(True, json_schema_extra=NO_OUTPUT)
    """On a GPU, launch each step as a whole. It is faster, and the tokens are the same."""

    @classmethod
    def of(cls, method: str, **options: Any) -> "DecodingSettings":
        """Settings from keyword arguments. Raises UserError for what is none, or has no such value."""
        try:
            return cls(method=method, **options)
        except ValidationError as error:
            raise UserError(message_of(error, cls)) from error

    @property
    def segments(self) -> Segments | None:
        """What the method searches above the token."""
        return with_segments(
            self.method, self.proposals, self.segment_tokens, self.segment_entropy, self.target_reward
        )

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(f"the method {method!r} is unknown; there are {', '.join(METHODS)}")
        return method

    @model_validator(mode="after")
    def _segments_fit(self) -> "DecodingSettings":
        _ = self.segments  # raises ValueError
        return self
