"""The methods of the field, each a row of one table: what the guidance sees, and how the token is chosen.

This module imports nothing, so that a config can name methods without loading torch.
"""

from typing import Literal, NamedTuple

Reading = Literal["as it is", "between 0 and 1", "log-sigmoid"]


class Method(NamedTuple):
    """What the guidance sees, how the token is chosen, and the published numbers."""

    guidance: Literal["none", "candidates", "next-token"]  # the reward of each candidate, or of every next token
    greedy: bool  # the mode of the tilted policy, or a sample of it
    beta: float  # published multiplier of the reward
    k: int  # published number of candidates
    reading: Reading = "as it is"  # how a reward enters the policy


METHODS: dict[str, Method] = {
    # The language model itself, top-k sampling.
    "unguided": Method("none", False, 0.0, 10),
    # PARGS and PARGS-G, arXiv 2406.07780: a reward model trained on partial sequences.
    "pargs": Method("candidates", False, 2.0, 10),
    "pargs-greedy": Method("candidates", True, 1.0, 10),
    # The same objective with a head of next tokens: one reward call a token.
    "pargs-next-token": Method("next-token", False, 2.0, 10),
    # ARGS-greedy, arXiv 2402.01694: a reward model trained on full sequences.
    "args": Method("candidates", True, 1.0, 10),
    # FaRMA, arXiv 2502.04517, and GenARM, arXiv 2410.08193: heads of next tokens.
    "farma": Method("next-token", False, 1.0, 10),
    "genarm": Method("next-token", False, 1.0, 10),
    # RAD, arXiv 2310.09520: regression on prefixes, the reward clamped.
    "rad": Method("candidates", False, 50.0, 20, "between 0 and 1"),
    # FUDGE, arXiv 2104.05218: a classifier of prefixes, of which the log-probability counts.
    "fudge": Method("candidates", False, 4.0, 200, "log-sigmoid"),
    # Controlled decoding, arXiv 2310.17022, tokenwise: a value function of prefixes.
    "cd": Method("candidates", False, 1.0, 10),
}
