"""The methods of the field, each a row of one table: what the guidance sees, and how the token is chosen."""

from typing import Literal, NamedTuple


class Method(NamedTuple):
    guidance: Literal["none", "candidates"]  # what it sees: nothing, or the reward of each candidate
    greedy: bool  # the mode of the tilted policy, or a sample of it
    beta: float  # published multiplier of the reward
    k: int  # published number of candidates
    objective: Literal["partial", "full"] | None  # what its reward model is trained on
    source: str


METHODS: dict[str, Method] = {
    "unguided": Method("none", False, 0.0, 10, None, "the language model itself, top-k sampling"),
    "pargs": Method("candidates", False, 2.0, 10, "partial", "PARGS, arXiv 2406.07780"),
    "pargs-greedy": Method("candidates", True, 1.0, 10, "partial", "PARGS-G, arXiv 2406.07780"),
    "args": Method("candidates", True, 1.0, 10, "full", "ARGS-greedy, arXiv 2402.01694"),
}
