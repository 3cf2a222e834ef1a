"""Errors of rows: counted by kind, and how many of them a run accepts."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from rgtg.config import Config
from rgtg.errors import QualityError, kind_of

MOST_KINDS = 10


class Reasons:
    """Counts reasons that are alike but for their numbers and names as one, by the first of them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, reasons: Iterable[str]) -> None:
        for reason in reasons:
            self.counts[self.first.setdefault(kind_of(reason), reason)] += 1

    def most_common(self) -> dict[str, int]:
        return dict(self.counts.most_common(MOST_KINDS))


def check_errors(config: Config, counts: dict[str, Any], target: str) -> None:
    """Raises QualityError where more prompts have an error than the config allows, also in a finished run."""
    if counts["errors"] <= config.generate.max_error_rate * counts["rows"]:
        return
    kinds = "; ".join(
        f"{times:,} times such as {reason!r}" for reason, times in counts.get("error_reasons", {}).items()
    )
    raise QualityError(
        f"{counts['errors']:,} of {counts['rows']:,} prompts have an error, and generate.max_error_rate is "
        f"{config.generate.max_error_rate} ({kinds}). All rows are in {target!r}: raise the rate to accept them, or "
        "fix the input and set another run.id"
    )
