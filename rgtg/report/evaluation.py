"""The table and the pictures of a comparison."""

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.table import Table

from rgtg.evaluation.results import Result, at_kl
from rgtg.evaluation.stats import Mean


def header(results: Sequence[Result]) -> list[str]:
    scorers = [name for name in results[0].scores if name != "score"]
    return [
        *("method", "own score", *scorers, "KL"),
        *("tokens", "distinct-2", "self-ROUGE-L", "LM calls", "RM calls", "seconds", "tokens/s", "errors"),
    ]


def rows(results: Sequence[Result]) -> list[list[str]]:
    """What the table says of each variant, by `header`."""
    return [
        [
            r.name,
            *(_mean(r.scores[name]) for name in ("score", *(n for n in results[0].scores if n != "score"))),
            f"{r.kl.value:.1f}" if r.kl else "",
            f"{r.tokens:.1f}",
            f"{r.distinct_2:.2f}",
            "" if r.rouge_l is None else f"{r.rouge_l:.2f}",
            f"{r.language_calls:.0f}",
            f"{r.reward_calls:.0f}",
            f"{r.seconds:.0f}",
            f"{r.tokens_per_second:,.0f}",
            f"{r.errors:,}",
        ]
        for r in results
    ]


def at_equal_kl(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Scores of each family that was run at several strengths, interpolated at equal KL; for each judge a row."""
    lines = []
    kls = kl_grid(results)
    for family, members in families(results).items():
        for scorer in [name for name in results[0].scores if name != "score"] or ["score"]:
            values = [at_kl(members, scorer, kl) for kl in kls]
            if any(values):
                lines.append([family, scorer, *map(_mean, values)])
    return ["family", "score", *(f"KL {kl:g}" for kl in kls)], lines


def kl_grid(results: Sequence[Result]) -> list[float]:
    """Five values of KL between the smallest and the largest of families with several members, evenly by ratio."""
    kls = [
        r.kl.value
        for members in families(results).values()
        for r in members
        if len(members) > 1 and r.kl and r.kl.value > 0
    ]
    if len(kls) < 2:
        return []
    low, ratio = min(kls), max(kls) / min(kls)
    return sorted({float(f"{low * ratio ** (i / 6):.2g}") for i in range(1, 6)})


def by_part(accuracies: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Accuracy of each reward model where it has seen a part of the responses."""
    parts = next(iter(accuracies.values()))["by_fraction"]
    lines = [[name, *(f"{a['by_fraction'][part]:.3f}" for part in parts)] for name, a in accuracies.items()]
    return ["reward model", *(f"{float(part):.0%}" for part in parts)], lines


def families(results: Sequence[Result]) -> dict[str, list[Result]]:
    ordered = sorted(results, key=lambda r: (r.family, r.beta))
    return {family: list(members) for family, members in groupby(ordered, key=lambda r: r.family)}


def as_table(results: Sequence[Result]) -> Table:
    table = Table(title="methods compared", title_justify="left")
    for i, name in enumerate(header(results)):
        table.add_column(name, justify="right" if i else "left", no_wrap=not i)
    for row in rows(results):
        table.add_row(*row)
    return table


def as_markdown(results: Sequence[Result], accuracies: Mapping[str, Any], notes: Sequence[str]) -> str:
    parts = ["# Methods compared", _markdown(header(results), rows(results))]
    names, lines = at_equal_kl(results)
    if lines:
        parts += ["## At equal distance from the language model", _markdown(names, lines)]
    if accuracies:
        parts += ["## Accuracy of reward models on held-out pairs", _markdown(*by_part(accuracies))]
    return "\n\n".join([*parts, *notes]) + "\n"


# What a score can be drawn against: a label, and the figure.
COSTS: dict[str, tuple[str, Callable[[Result], float | None]]] = {
    "kl": ("KL from the language model (nats)", lambda r: r.kl.value if r.kl else None),
    "reward_calls": ("reward calls per completion", lambda r: r.reward_calls),
    "seconds": ("seconds per 1,000 completions", lambda r: 1000 * r.seconds / max(1, r.completions)),
}


def picture(results: Sequence[Result], cost: str) -> bytes:
    """A PNG of scores against one of COSTS: a line a family, a panel a judge."""
    from matplotlib.figure import Figure

    name_of_cost, figure_of = COSTS[cost]
    scorers = [name for name in results[0].scores if name != "score"] or ["score"]
    figure = Figure(figsize=(7 * len(scorers), 5), layout="constrained")
    for axes, scorer in zip(figure.subplots(1, len(scorers), squeeze=False)[0], scorers, strict=True):
        for family, members in families(results).items():
            points = [
                (x, score.value, score.error, r.beta)
                for r in members
                if (score := r.scores.get(scorer)) and (x := figure_of(r)) is not None
            ]
            if points:
                costs, values, errors, betas = zip(*sorted(points), strict=True)
                axes.errorbar(costs, values, yerr=errors, marker="o", capsize=2, label=family)
                for *point, beta in zip(costs, values, betas, strict=True) if len(points) > 1 else ():
                    label = f"beta {beta:g}"
                    axes.annotate(label, point, (3, 4), textcoords="offset points", fontsize="xx-small")
        if cost != "kl":
            axes.set_xscale("symlog")
        axes.set_xlabel(name_of_cost)
        axes.set_ylabel(scorer)
        axes.legend(fontsize="x-small")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()


def _mean(mean: Mean | None) -> str:
    return str(mean) if mean else ""


def _markdown(names: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [names, ["---"] * len(names), *lines])
