"""The summary that a run ends with, for a person and for a program."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

Counts = dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """Counts of the stages as the manifest has them; what a run did not do is None."""

    run: str
    method: str
    pairs: Counts | None
    accuracy: dict[str, Counts]  # by objective: held-out accuracy by_length and by_fraction
    prompts: Counts
    guided: Counts
    unguided: Counts | None
    true_guided: tuple[float, float] | None  # mean and standard error of the sandbox's true reward
    true_unguided: tuple[float, float] | None
    preferences: Counts
    seconds: dict[str, float]

    def figures(self) -> dict[str, Any]:
        return asdict(self)


def rows(summary: Summary) -> list[tuple[str, str]]:
    """What the summary says, line by line."""
    lines: list[tuple[str, str]] = []
    if summary.pairs:
        unused = sum(summary.pairs["unused"].values())
        lines.append(
            (
                "preference pairs",
                f"{summary.pairs['train']:,} trained on, {summary.pairs['eval']:,} held out, {unused:,} unused",
            )
        )
    for objective, accuracy in summary.accuracy.items():
        parts = ", ".join(f"{float(part):.0%}: {value:.3f}" for part, value in accuracy["by_fraction"].items())
        lines.append((f"accuracy ({objective})", f"by part of the response  {parts}"))
    prompts, guided = summary.prompts, summary.guided
    lines.append(
        ("prompts", f"{prompts['rows']:,} ({prompts['errors']:,} bad, {prompts['duplicates']:,} duplicates left out)")
    )
    lines.append(
        (
            "completions",
            f"{guided['completions']:,} of {guided['tokens']:,} tokens, {guided['errors']:,} prompts with an error",
        )
    )
    if guided.get("decode_seconds"):
        lines.append(("speed", f"{guided['decoded_tokens'] / guided['decode_seconds']:,.0f} tokens/s"))
    lines.append((f"reward ({summary.method})", _mean(guided)))
    if summary.unguided:
        lines.append(("reward (unguided)", _mean(summary.unguided)))
    if summary.true_guided:
        lines.append((f"true reward ({summary.method})", _plus_minus(*summary.true_guided)))
    if summary.true_unguided:
        lines.append(("true reward (unguided)", _plus_minus(*summary.true_unguided)))
    if summary.true_guided and summary.true_unguided:
        (guided_mean, guided_error), (plain_mean, plain_error) = summary.true_guided, summary.true_unguided
        error = (guided_error**2 + plain_error**2) ** 0.5
        difference = guided_mean - plain_mean
        lines.append(("  guidance gains", f"{difference:+.3f}, {difference / max(error, 1e-12):.1f} standard errors"))
    preferences = summary.preferences
    dropped = sum(preferences["dropped"].values())
    lines.append(
        (
            "preferences",
            f"{preferences['train']:,} train, {preferences['test']:,} test, {dropped:,} prompts without a pair, "
            f"mean margin {preferences['mean_margin']:.3f}",
        )
    )
    lines.append(("seconds", ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in summary.seconds.items())))
    lines.append(("reward model", f"{summary.run}/reward_model" if summary.accuracy else "as configured"))
    lines.append(("preferences are in", f"{summary.run}/preferences"))
    return lines


def as_table(summary: Summary) -> Table:
    table = Table(title=f"rgtg run {summary.run}", show_header=False, title_justify="left")
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in rows(summary):
        table.add_row(name, value)
    return table


def as_markdown(summary: Summary) -> str:
    body = "\n".join(f"| {name.strip()} | {value} |" for name, value in rows(summary))
    return f"# rgtg run {summary.run}\n\n| | |\n|---|---|\n{body}\n"


def _mean(counts: Counts) -> str:
    return _plus_minus(counts["mean_reward"], counts["reward_stderr"]) if "mean_reward" in counts else "not scored"


def _plus_minus(mean: float, error: float) -> str:
    return f"{mean:+.3f} ± {error:.3f}"
