"""Which completions of a run's prompts make a pair, by its settings: the same for every stage that asks."""

from typing import Any

from pipelines.completions import COLUMNS, completions_of
from rgtg import table_files
from rgtg.config import Preferences
from rgtg.preferences.selection import Night, Rules, Statistics, candidates, select


class Selection:
    """Selects from rows of the completions at `source`; some strategies read all of them once before."""

    def __init__(self, source: str, settings: Preferences) -> None:
        assert settings.select  # the job has filled it in
        self.strategy = settings.select
        self.rules = Rules(**settings.model_dump(include={"truncated", "min_margin", "max_similarity", "length"}))
        whole = settings.length == "residual" or settings.select == "best-near"
        self.night = _night(source, self.rules) if whole else Night()

    def of(self, row: dict[str, Any]) -> list[dict[str, Any]] | str:
        """The chosen and the rejected completion of a row (of a ranking: all), each with its `index` in the row; or
        the reason why there are none.
        """
        completions = completions_of(row)
        found = candidates(completions, self.rules)
        selected = select(found, self.strategy, self.rules, self.night, row["prompt_id"])
        if isinstance(selected, str):
            return selected
        return [completions[candidate.index] | {"index": candidate.index} for candidate in selected]


def _night(source: str, rules: Rules) -> Night:
    """What selection needs to know of all prompts, by a pass over them."""
    statistics = Statistics()
    for table in table_files.read_tables(source, COLUMNS):
        for row in table.to_pylist():
            if row["error"] is None:
                statistics.add(candidates(completions_of(row), rules))
    return statistics.night()
