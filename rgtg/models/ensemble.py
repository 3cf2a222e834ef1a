"""Several reward models as one, which is harder to exploit than each of them."""

from typing import Literal

from torch import Tensor

Combine = Literal["mean", "min", "lower-bound"]


def combine(rewards: Tensor, how: Combine, width: float = 1.0) -> Tensor:
    """Rewards (M, ...) of M models as one (...): their mean, the smallest, or the mean minus `width` deviations.

    Standard deviations of the M, not of their mean: pessimism where models disagree (Coste et al., arXiv 2310.02743).

    The models' scales are not touched: they should be alike.
    """
    if how == "min":
        return rewards.amin(0)
    mean = rewards.mean(0)
    return mean if how == "mean" else mean - width * (rewards - mean).square().mean(0).sqrt()
