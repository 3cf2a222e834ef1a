"""The thresholds of gates: what a night's pairs must be before anyone trains on them."""

from typing import Literal

from rgtg.config_section import PathOrUri, Section, Threshold


class Gates(Section):
    """Thresholds of gates: see the table in rgtg/evaluation/README.md. `off` leaves a gate out."""

    on_fail: Literal["fail", "warn"] = "fail"
    """What a failed gate does: the run ends with exit code 3 and without _SUCCESS, all of its data written; or it is
    said and no more."""
    compare_with: PathOrUri | None = None
    """The directory of another run, such as the last good night, from which this one must not drift."""
    learned: Threshold = 0.5
    """Least part of held-out pairs that the reward model ranks rightly; a run that does not train has none."""
    labels: Threshold = 0.55
    """Least part of pairs that the judge orders as the reward model does."""
    labels_guided: Threshold = 0.5
    """The same of any two guided completions of a prompt."""
    labels_unguided: Threshold = 0.5
    """The same of any two unguided completions of a prompt."""
    hacking: Threshold = 0.0
    """Least gain by guidance that the judge sees where the reward model sees one."""
    guidance: Threshold = 0.0
    """Least gain in score by guidance."""
    length: Threshold = 0.4
    """Largest correlation of score and tokens within a prompt."""
    unreadable: Threshold = 0.1
    """Largest part of an endpoint's verdicts that cannot be read."""
    truncation: Threshold = 0.2
    """Largest part of chosen texts that were cut off."""
    without_pair: Threshold = 0.6
    """Largest part of the prompts without a pair."""
    degenerate: Threshold = 0.0
    """Largest part of pairs whose sides are the same but for white space."""
    provenance: Threshold = 0.9
    """Largest part of texts whose surface (length, punctuation) tells guided from unguided."""
    similarity: Threshold = 0.9
    """Largest mean likeness of two completions of a prompt (token bigrams)."""
    echo: Threshold = 0.1
    """Largest part of chosen texts that repeat 40 characters of their prompt."""
    off_policy: Threshold = None
    """Largest distance from the language model, in nats a completion, above that of unguided completions."""
    drift: Threshold = 0.25
    """Largest population stability index of score, length and margin against `compare_with`."""
