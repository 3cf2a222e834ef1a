"""The token rule as pure functions: candidates, tilt by beta times reward, and a choice whose noise depends on nothing
but the seed, the prompt, the sample, the step and the token.

    pi(v | x, y<i)  is proportional to  p(v | x, y<i) * exp(beta * r(x, y<i v)),   v among the top-k tokens

(PARGS, arXiv 2406.07780, equation 3, with `beta` multiplying the reward.)
"""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rgtg.methods import RewardTransform

# Multipliers of the finalizer of SplitMix64 (Steele, Lea and Flood, 2014) and its golden-ratio increment, as int64.
_MIX1, _MIX2, _GOLDEN = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15, -0x61C8864680B583EB


class Choice(NamedTuple):
    """What was chosen in each row, (B,) each."""

    candidate: Tensor  # its index among the k, int64
    logprob: Tensor  # log p(v): the language model's, over its whole vocabulary
    guided_logprob: Tensor  # log pi(v): the sampling policy's, over the candidates; 0 where the choice is greedy


def candidates(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B, k) in float32 and token ids (B, k) of the top-k tokens; k = 0 takes all of V."""
    values, tokens = logits.topk(min(k or logits.shape[-1], logits.shape[-1]), dim=-1)
    return values.float() - logits.float().logsumexp(-1, keepdim=True), tokens


@dataclass(frozen=True)
class Rule:
    """How a token is chosen: the token rule's `beta` and `k`, and whether it samples or takes the mode.

    `temperature` divides the whole score. `top_p` keeps the most probable candidates that together have this
    probability at that temperature under the language model; the first one always counts.
    """

    beta: float
    k: int
    greedy: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    reward_transform: RewardTransform = "identity"
    vocabulary: int | None = None  # only ids below it can be chosen: what both models have embeddings for


class Steering(NamedTuple):
    """What a rule says of one sample: several samples of a prompt may differ by it in one batch."""

    beta: float
    greedy: bool = False
    search: bool = True  # whether segments are searched for it, where the method does that


UNGUIDED = Steering(0.0, search=False)  # the language model itself, restricted to the candidates


def choose(
    logprobs: Tensor,
    rewards: Tensor | None,
    rule: Rule,
    noise: Tensor | None,
    betas: Tensor | None = None,
    greedy: Tensor | None = None,
) -> Choice:
    """Sample from the tilted policy by the Gumbel-max rule, or take its mode where `noise` is None.

    logprobs, rewards, noise: (B, k), the most probable candidate first; rewards None is the language model itself. A
    candidate whose reward is not finite cannot be chosen; where none can, `guided_logprob` is NaN. `betas` (B,) and
    `greedy` (B,) stand in for those of the rule, row by row; a row whose beta is 0 does not see its rewards.
    """
    tilted = logprobs.double()
    if rewards is not None:
        rewards = transformed(rewards.double(), rule.reward_transform)
        beta = rule.beta if betas is None else betas[:, None]
        guided = torch.where(rewards.isfinite(), tilted + beta * rewards, -torch.inf)
        tilted = guided if betas is None else torch.where(betas[:, None] == 0, tilted, guided)
    tilted = tilted / rule.temperature
    if rule.top_p < 1:
        probs = (logprobs.double() / rule.temperature).softmax(-1)
        tilted = tilted.masked_fill(probs.cumsum(-1) - probs >= rule.top_p, -torch.inf)
    if noise is not None and greedy is not None:
        noise = noise.masked_fill(greedy[:, None], 0.0)
    index = (tilted if noise is None else tilted + noise).argmax(-1, keepdim=True)
    best = tilted.gather(-1, index)[:, 0]
    mode = torch.where(best.isfinite(), 0.0, torch.nan)
    guided = mode if noise is None else best - tilted.logsumexp(-1)
    if noise is not None and greedy is not None:
        guided = torch.where(greedy, mode, guided)
    return Choice(index[:, 0], logprobs.gather(-1, index)[:, 0], guided)


def transformed(rewards: Tensor, transform: RewardTransform) -> Tensor:
    """Rewards as they enter the policy; those that are not finite stay so."""
    if transform == "clamp":
        return torch.where(rewards.isfinite(), rewards.clamp(0, 1), rewards)
    return torch.where(rewards.isfinite(), logsigmoid(rewards), rewards) if transform == "logsigmoid" else rewards


def gumbel(row_keys: Tensor, steps: Tensor, tokens: Tensor) -> Tensor:
    """Standard Gumbel noise (B, k) in float64, a function of row key (B,), step (B,) and token id (B, k) alone.

    Keyed by token and not by rank: should rounding swap two candidates of nearly equal probability, each keeps its
    own.
    """
    bits = _mix(_mix(row_keys + steps * _GOLDEN)[:, None] ^ (tokens * _GOLDEN + 1))
    uniform = (_shift(bits, 12).double() + 0.5) * 2.0**-52  # strictly between 0 and 1, exactly
    return -torch.log(-torch.log(uniform))


def row_key(seed: int, prompt_id: str, sample: int, attempt: int = 0) -> int:
    """The 64-bit key (as int64) of one sample of one prompt in a run, and of one attempt where it is searched for."""
    return int.from_bytes(_digest(seed, prompt_id, sample, attempt)[:8], "little", signed=True)


def uniform(seed: int, prompt_id: str, sample: int, attempt: int) -> float:
    """A number in [0, 1) by which an attempt is accepted, independent of the noise of its tokens."""
    return (int.from_bytes(_digest(seed, prompt_id, sample, attempt)[8:16], "little") >> 11) * 2.0**-53


def _digest(seed: int, prompt_id: str, sample: int, attempt: int) -> bytes:
    name = f"{seed}/{sample}/{prompt_id}" if attempt == 0 else f"{seed}/{sample}.{attempt}/{prompt_id}"
    return hashlib.sha256(name.encode(errors="surrogatepass")).digest()


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, n: int) -> Tensor:
    """Logical shift to the right of int64, which torch shifts arithmetically."""
    return (x >> n) & ((1 << (64 - n)) - 1)
