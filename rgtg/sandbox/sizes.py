"""The sizes of the sandbox, apart from what they size: a config can name them without importing torch."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LanguageSpec:
    """Sizes of the model and of its training; the defaults take about a minute of one core.

    Two layers, because a minute is short: measured on a machine of two cores, they reach a lower loss in it than four.
    """

    vocab: int = 512
    hidden: int = 128
    intermediate: int = 448
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    positions: int = 256
    tokenizer_texts: int = 2000
    steps: int = 900
    rows: int = 4  # of `positions` tokens each, in a step
    learning_rate: float = 4e-3


@dataclass(frozen=True)
class SandboxSpec:
    """Sizes of what is built; the defaults are the sandbox that users get."""

    language: LanguageSpec = field(default_factory=LanguageSpec)
    pairs: int = 4000
    eval_pairs: int = 1000
    prompts: int = 512


FULL = SandboxSpec()
