"""The summary that a run ends with, for a person and for a program."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from rich.table import Table

from rgtg.evaluation.stats import Mean, share_error
from rgtg.report.warnings import cut_off

Counts = dict[str, Any]


class Comparison(NamedTuple):
    """A score over prompts; the baseline's; and what the run gained over it on the baseline's prompts."""

    score: Mean | None
    baseline: Mean | None
    gain: Mean | None


@dataclass(frozen=True)
class Summary:
    """Counts of the stages as the manifest has them; what a run has not done is None."""

    run: str
    method: str
    pairs: Counts | None
    accuracy: dict[str, Counts]  # by objective: held-out accuracy by_length and by_fraction
    prompts: Counts | None
    guided: Counts | None
    scores: dict[str, Comparison]  # by what scored: the reward model, and in the sandbox the true reward
    preferences: Counts | None
    gates: Counts | None
    seconds: dict[str, float]
    warnings: list[str]  # what whoever uses the pairs must know
    right: Mean | None = None  # in the sandbox: the part of the pairs whose chosen side is truly better; a tie is half

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
        way = accuracy.get("score", "final")
        error = share_error(accuracy["by_fraction"].get("1.0", 0.5), accuracy["pairs"].get("full", 0))
        lines.append((f"accuracy ({objective})", f"{way} score, by part: {parts} ± {error:.3f}"))
    lines += [("WARNING", warning) for warning in summary.warnings]
    if prompts := summary.prompts:
        errors = f"{prompts['errors']:,} bad, {prompts['duplicates']:,} duplicates left out"
        lines.append(("prompts", f"{prompts['rows']:,} ({errors})"))
    if guided := summary.guided:
        said = [f"{guided['completions']:,} of {guided['tokens']:,} tokens"]
        said += [f"{cut_off(guided):,} cut off at max_new_tokens", f"{guided['errors']:,} prompts with an error"]
        if marked := guided.get("with_control_tokens"):
            said.append(f"{marked:,} prompts of text that spell out control tokens")
        lines.append(("completions", ", ".join(said)))
        if guided.get("decode_seconds"):
            lines.append(("speed", f"{guided['decoded_tokens'] / guided['decode_seconds']:,.0f} tokens/s"))
    for name, (score, baseline, gain) in summary.scores.items():
        if score:
            lines.append((f"{name} ({summary.method})", str(score)))
        if baseline:
            lines.append((f"{name} (unguided)", str(baseline)))
        if gain:
            sizes = f", {gain.value / gain.error:.1f} standard errors" if gain.error else ""
            lines.append(("  guidance gains", f"{gain}{sizes}, on the same {gain.n:,} prompts"))
    if preferences := summary.preferences:
        dropped = sum(preferences["dropped"].values())
        lines.append(
            (
                "preferences",
                f"{preferences['train']:,} train, {preferences['test']:,} test, {dropped:,} prompts without a pair, "
                f"mean score margin {preferences['mean_margin']:.3f}",
            )
        )
    if summary.right:
        lines.append(("  right by true reward", f"{summary.right.value:.3f} ± {summary.right.error:.3f}"))
    if summary.gates:
        lines.append(("gates", f"{summary.gates['verdict'].upper()}: {_gates(summary.gates['gates'])}"))
    lines.append(("seconds", ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in summary.seconds.items())))
    if summary.accuracy or summary.guided:
        lines.append(("reward model", f"{summary.run}/reward_model" if summary.accuracy else "as configured"))
    if summary.preferences:
        lines.append(("preferences are in", f"{summary.run}/preferences, their card in {summary.run}/report"))
    return lines


LABELS = {"fail": "failed:", "warn": "warned:", "off": "off:"}


def _gates(gates: list[Counts]) -> str:
    """How many passed, and the names of those that did not."""
    names: dict[str, list[str]] = {}
    for gate in gates:
        names.setdefault(gate["verdict"], []).append(gate["name"])
    said = [f"{len(names.get('pass', []))} passed"]
    said += [f"{label} {', '.join(names[key])}" for key, label in LABELS.items() if key in names]
    return "; ".join([*said, *([f"{len(names['unknown'])} not known"] if "unknown" in names else [])])


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
