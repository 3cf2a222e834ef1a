"""Gates: what must hold of a night's pairs before anyone trains on them.

A gate is a row of GATES: one figure with its 95 % bounds, and which way is worse. Its threshold is `gates.<name>`.
It fails where the bound is past the threshold, so that few prompts do not fail by chance, and warns where the figure
itself is past the row's own mark. Below FEW cases it only warns.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal, NamedTuple

from rgtg.evaluation.intervals import Figure

Verdict = Literal["pass", "warn", "fail", "off", "unknown"]

FEW = 200  # pairs or prompts
WORST: tuple[Verdict, ...] = ("fail", "warn")


class Rule(NamedTuple):
    """What a gate measures (`says`, the subject of its sentence), which way is worse, and where it warns.

    `unproven` is the verdict on a figure that its bounds do not tell from the threshold: it has to be better.
    """

    says: str
    worse: Literal["higher", "lower"]
    warn: float | None = None
    unproven: Verdict | None = None


GATES: dict[str, Rule] = {
    "learned": Rule("the part of held-out pairs that the reward model ranks rightly", "lower", unproven="fail"),
    "labels": Rule("the part of the pairs that the judge orders as the reward model does", "lower", 0.65),
    "labels_guided": Rule("the same agreement among the guided completions of a prompt", "lower", 0.55),
    "labels_unguided": Rule("the same agreement among the unguided completions of a prompt", "lower", 0.55),
    "hacking": Rule("the judge's gain by guidance, where the reward model sees one", "lower", 0.0),
    "unreadable": Rule("the part of the judge's verdicts that cannot be read", "higher", 0.02),
    "guidance": Rule("the gain in score by guidance", "lower", unproven="warn"),
    "length": Rule("the correlation of score and tokens within a prompt", "higher", 0.2),
    "truncation": Rule("the part of chosen texts that were cut off at max_new_tokens", "higher", 0.05),
    "without_pair": Rule("the part of prompts without a pair", "higher", 0.2),
    "degenerate": Rule("the part of pairs whose sides are the same but for white space", "higher", 0.0),
    "provenance": Rule("the part of texts whose surface tells guided from unguided", "higher", 0.75),
    "similarity": Rule("the mean likeness of two completions of a prompt", "higher", 0.6),
    "echo": Rule("the part of chosen texts that repeat their prompt", "higher", 0.01),
    "off_policy": Rule("the nats a completion by which guidance leaves the language model", "higher", 20.0),
    "drift": Rule("the largest stability index of score, length and margin against the other run", "higher", 0.1),
}


@dataclass(frozen=True)
class Gate:
    """A gate that was held against a night; figures are None where the night does not have them."""

    name: str
    verdict: Verdict
    figure: float | None
    low: float | None
    high: float | None
    n: int
    warn: float | None
    fail: float | None
    says: str  # what is measured
    sentence: str

    def figures(self) -> dict[str, Any]:
        return asdict(self)


def hold(figures: Mapping[str, Figure | None], thresholds: Mapping[str, float | None]) -> list[Gate]:
    """Every gate held against the figures of a night, by name."""
    return [gate(name, figures.get(name), thresholds[name]) for name in GATES]


def gate(name: str, figure: Figure | None, fail: float | None) -> Gate:
    """`fail` is the threshold, None where the gate is off."""
    rule = GATES[name]
    verdict: Verdict = "off" if fail is None else "unknown" if figure is None else _verdict(rule, figure, fail)
    few = verdict == "fail" and figure is not None and figure.n < FEW
    verdict = "warn" if few else verdict
    if figure is None:
        return Gate(name, verdict, None, None, None, 0, rule.warn, fail, rule.says, f"{rule.says} is not known")
    past = "above" if rule.worse == "higher" else "below"
    bound = f"; it fails {past} {fail:g} (gates.{name})" if fail is not None else f" (gates.{name} is off)"
    if fail is not None and rule.unproven == "fail":
        bound = f"; it fails where that is not surely above {fail:g} (gates.{name})"
    if few:
        bound += f", and of fewer than {FEW} cases only warns"
    said = f"{rule.says} is {figure.value:.3f} (95 %: {figure.low:.3f} to {figure.high:.3f}, n = {figure.n:,}){bound}"
    low, high = (bound if isfinite(bound) else None for bound in (figure.low, figure.high))
    return Gate(name, verdict, figure.value, low, high, figure.n, rule.warn, fail, rule.says, said)


def verdict_of(gates: list[Gate]) -> Verdict:
    """That of a night: the worst of its gates'."""
    found = {gate.verdict for gate in gates}
    return next((verdict for verdict in WORST if verdict in found), "pass")


def _verdict(rule: Rule, figure: Figure, fail: float) -> Verdict:
    sign = 1 if rule.worse == "higher" else -1
    value, warn = sign * figure.value, None if rule.warn is None else sign * rule.warn
    best, worst = sorted((sign * figure.low, sign * figure.high))
    verdict: Verdict = "pass"
    if best > sign * fail:
        verdict = "fail"
    elif rule.unproven and worst >= sign * fail:
        verdict = rule.unproven
    elif warn is not None and value > warn:
        verdict = "warn"
    return verdict
