"""What whoever uses a run's pairs must know, by the counts of one of its stages; None where there is nothing."""

from typing import Any

from rgtg.evaluation.stats import better_than_chance, share_error

MANY = 0.5  # of pairs that are unused, of completions that are cut off
FEW = 200  # held-out pairs, of which an accuracy says little
HARDLY = 0.05  # a difference of scores: by Bradley and Terry .51 against .49


def of_pairs(counts: dict[str, Any]) -> str | None:
    unused = sum(counts["unused"].values())
    total = counts["train"] + counts["eval"] + unused
    if not unused or unused < MANY * total:
        return None
    reason, times = next(iter(counts["unused"].items()))
    return (
        f"{unused:,} of the {total:,} pairs could not be used, {times:,} of them because of this: {reason}; the table "
        "pairs/ names file and row of each"
    )


def of_training(counts: dict[str, Any]) -> str | None:
    accuracy = counts["accuracy"]
    share, n = accuracy["by_fraction"].get("1.0", 0.5), accuracy["pairs"].get("full", 0)
    if not n or better_than_chance(share, n):
        return None
    more = ", or hold out more of them (train_reward.eval_fraction)" if n < FEW else ""
    return (
        f"the reward model has learned nothing that {n} held-out pairs show: it is right about {share:.3f} of them "
        f"(guessing: .5 ± {share_error(0.5, n):.3f}), so its scores and the pairs made by them mean nothing; train "
        f"longer or with another learning_rate, give more pairs{more}"
    )


def of_completions(counts: dict[str, Any]) -> str | None:
    completions, cut = counts.get("completions", 0), cut_off(counts)
    if not completions or cut < MANY * completions:
        return None
    return (
        f"{cut:,} of the {completions:,} completions were cut off at generate.max_new_tokens, and texts that do not "
        "end are never chosen: raise it, or take them as they are by preferences.truncated=keep, which decodes "
        "nothing anew"
    )


def cut_off(counts: dict[str, Any]) -> int:
    """How many completions ended at max_new_tokens, without an EOS."""
    return counts.get("completions", 0) - counts.get("stopped", 0)


def of_preferences(counts: dict[str, Any]) -> str | None:
    if counts["mean_margin"] >= HARDLY:
        return None
    return (
        f"chosen and rejected hardly differ by the reward model: their scores by {counts['mean_margin']:.3f} in the "
        "mean; it may have learned nothing, or generate.beta may be too small"
    )
