"""What the engine is given, and what it gives back."""

from dataclasses import dataclass, field

from rgtg.decoding.token_rule import Steering


@dataclass
class Sequence:
    """One completion as token ids; `finish_reason` is `stop` or `length`."""

    token_ids: list[int]
    token_rewards: list[float]  # none where nothing scored it
    logprob: float
    guided_logprob: float | None  # None where a search above the token chose
    finish_reason: str
    language_calls: int  # tokens that were decoded for it, kept or not
    reward_calls: int  # prefixes that the reward model was asked for
    error: str | None = None


@dataclass(eq=False)
class Request:
    """One prompt and the completions asked for: `sequences` fills up, `done` says when."""

    prompt_id: str
    prompt_ids: list[int]
    reward_prompt_ids: list[int]  # the same prompt in the reward model's own template
    samples: int
    max_new_tokens: int
    seed: int
    reward_text: str = ""  # that prompt as text, for a reward model that reads text
    steering: tuple[Steering, ...] = ()  # of each sample, where it is not that of the engine's rule
    prompt_reward: float | None = None  # r(x), where a search has asked for it
    sequences: dict[int, Sequence] = field(default_factory=dict)
    started: int = 0  # samples that have or had a row

    def reset(self) -> None:
        """Forget what was decoded of it."""
        self.sequences, self.started = {}, 0

    def steering_of(self, sample: int) -> Steering | None:
        """How a sample is steered; None as the engine's rule says."""
        return self.steering[sample] if self.steering else None

    @property
    def length(self) -> int:
        """Tokens of its longest completion together with the prompt, as either model reads it."""
        return max(len(self.prompt_ids), len(self.reward_prompt_ids)) + self.max_new_tokens

    @property
    def done(self) -> bool:
        return len(self.sequences) == self.samples
