"""The tables and the picture of `preferences.py`: means and standard deviations over the seeds that are there."""

import io
from collections.abc import Iterable, Iterator
from math import log, sqrt
from statistics import fmean, stdev
from typing import Any

import numpy as np

from pipelines.experiments.labels import BEST_OF
from rgtg.text_score import WAYS

AT_KL = (1.0, 3.0)  # nats at which policies are compared

Rows = dict[str, Any]  # by key: "labels/...", "decoding/...", "policy/..."


def tables(rows: Rows) -> str:
    lines = [
        "## Labels",
        "",
        *_head("guide", "score", "pairs", "right way round", "true margin", "told by length", "told by 2-grams"),
    ]
    for (kind, way), values in _by_cell(rows, "labels", 1).items():
        for source in values[0]:
            figures = [spread(v[source][name] for v in values) for name in ("right", "margin", "length", "2-grams")]
            lines.append(_row(kind, way, source, *figures))
    lines += ["", "## Held-out pairs that a reward model ranks rightly", "", *_head("guide", *WAYS)]
    for (kind,), values in _by_cell(rows, "accuracy", 1).items():
        lines.append(_row(kind, *(spread(v[way] for v in values) for way in WAYS)))
    lines += ["", "## Decoding", "", *_head("guide", "guided", "at KL", "better than unguided", f"best of {BEST_OF}")]
    for (kind,), values in _by_cell(rows, "decoding", 1).items():
        lines.append(
            _row(kind, *(spread(v[n] for v in values if n in v) for n in ("guided", "kl", "better", "best-of-n")))
        )
    for (), [value] in _by_cell(rows, "seconds", 1).items():
        guided, unguided = (1000 * value[name] for name in ("guided", "unguided"))
        lines += [
            "",
            f"A guided completion takes {guided:.1f} ms and an unguided one {unguided:.1f} ms: four of each take the "
            f"time of {value['best of n']:.1f} unguided ones.",
        ]
    names = ("guide", "labels", "pairs", "trained by", "beta", "steps", "gain", "at KL", "prefers better")
    lines += ["", "## Policies", "", *_head(*names)]
    for cell, values in _by_cell(rows, "policy", 2).items():
        figures = [spread(v[name] for v in values if name in v) for name in ("gain", "kl", "prefers_better")]
        lines.append(_row(*cell, *figures))
    lines += ["", "## Gains at equal KL", "", *_head("guide", "labels", "pairs", "trained by", *map(str, AT_KL))]
    for curve, points in curves(rows).items():
        lines.append(_row(*curve, *(_figure(gain_at(points, kl)) for kl in AT_KL)))
    return "\n".join(lines) + "\n"


def curves(rows: Rows) -> dict[tuple[str, ...], list[tuple[float, float]]]:
    """(KL, gain) of policies that differ in beta and steps alone, means over seeds, by rising KL."""
    found: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for (*curve, _, _), values in _by_cell(rows, "policy", 2).items():
        point = (fmean(v["kl"] for v in values), fmean(v["gain"] for v in values))
        found.setdefault(tuple(curve), []).append(point)
    return {curve: sorted(points) for curve, points in found.items()}


def gain_at(points: list[tuple[float, float]], kl: float) -> float | None:
    """The gain at a KL, between the nearest points, along sqrt(KL), in which small gains are linear; the language
    model itself is (0, 0). None beyond the last one.
    """
    known = [(0.0, 0.0), *points]
    for (below, low), (above, high) in zip(known, known[1:], strict=False):
        if below <= kl <= above:
            return low + (high - low) * (sqrt(kl) - sqrt(below)) / (sqrt(above) - sqrt(below))
    return None


def picture(rows: Rows) -> bytes:
    """A PNG of gains over KL: a line of policies for each kind of pairs, and guided decoding. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    for (kind, labels, source, trainer), points in curves(rows).items():
        name = source if kind == "guide" else f"{source}, {kind}"
        name += ", true labels" if labels == "truth" else ""
        kls, gains = zip((0.0, 0.0), *points, strict=True)
        axes.plot(kls, gains, marker="o", label=f"{name} ({trainer})", linestyle="-" if trainer == "dpo" else "--")
    for (kind,), values in _by_cell(rows, "decoding", 1).items():
        kl, guided = ([fmean(v[name] for v in values)] for name in ("kl", "guided"))
        axes.plot(kl, guided, "*", markersize=12, label=f"guided decoding, {kind}")
        if best_of_n := [v["best-of-n"] for v in values if "best-of-n" in v]:
            kl = [log(BEST_OF) - 1 + 1 / BEST_OF]
            axes.plot(kl, [fmean(best_of_n)], "s", label=f"best of {BEST_OF}, KL at most")
    # As `gain_at` interpolates; the estimate for a guide with beta 0 may be below 0.
    axes.set_xscale("function", functions=(lambda kl: np.sqrt(np.maximum(kl, 0)), np.square))
    axes.set_xlim(left=0)
    axes.set_xticks([0, 0.5, 1, 2, 3, 4, 5, 6])
    axes.set_xlabel("KL from the language model (nats)")
    axes.set_ylabel("gain in true reward")
    figure.legend(fontsize="x-small", loc="outside right upper")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()


def spread(values: Iterable[float]) -> str:
    """Mean and standard deviation over seeds."""
    given = list(values)
    if not given:
        return ""
    return f"{fmean(given):.3f} ± {stdev(given):.3f}" if len(given) > 1 else f"{given[0]:.3f}"


def _by_cell(rows: Rows, kind: str, num_seeds: int) -> dict[tuple[str, ...], list[Any]]:
    """The values of one kind of rows, by their keys without the seeds."""
    found: dict[tuple[str, ...], list[Any]] = {}
    for key, value in rows.items():
        first, *cell = key.split("/")
        if first == kind:
            found.setdefault(tuple(cell[:-num_seeds]), []).append(value)
    return found


def _head(*names: str) -> Iterator[str]:
    return iter((_row(*names), "|" + "---|" * len(names)))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"
