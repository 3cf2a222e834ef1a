"""The charts of a page as SVG elements, the same bytes for the same figures.

Colors are those of the page's style sheet, so that charts are light and dark with it: matplotlib draws with the keys
of COLORS, and the page says what they are.
"""

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from rgtg.report.accumulate import Histogram
from rgtg.report.run_figures import Length, Sides

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, FIRST, SECOND, THIRD = "#010101", "#010102", "#010103", "#010104", "#010105", "#010106"
HEXAGONS = [f"#01020{i}" for i in range(6)]
COLORS = {
    **{INK: "--ink", MUTED: "--muted", GRID: "--grid", FIRST: "--chosen", SECOND: "--rejected", THIRD: "--all"},
    **{color: f"--hex{i}" for i, color in enumerate(HEXAGONS)},
}
WIDTH = 4.1  # inches of 72 points: on a phone a chart is about as wide, and its text as large
FONT = 9.5
STYLE: dict[Any, Any] = {
    **{
        "svg.fonttype": "none",
        "svg.hashsalt": "rgtg",
        "font.size": FONT,
        "axes.linewidth": 0.6,
        "axes.edgecolor": GRID,
    },
    **{"axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED, "text.color": INK},
    **{"xtick.major.width": 0.6, "ytick.major.width": 0.6, "axes.spines.top": False, "axes.spines.right": False},
    **{"axes.unicode_minus": True, "path.simplify": False},
}
# Colors and forms of series: whoever sees no color sees a filled area, a line and a dashed one.
SERIES: dict[str, dict[str, Any]] = {
    "chosen": {"color": FIRST, "fill": True, "alpha": 0.55},
    "rejected": {"color": SECOND, "linewidth": 1.5},
    "all": {"color": THIRD, "linewidth": 1.0, "linestyle": (0, (3, 2))},
    "margin": {"color": FIRST, "fill": True, "alpha": 0.55},
}


def histogram_chart(name: str, of: Histogram, label: str) -> Markup:
    """Shares of each series, so that series of another size can be compared."""
    figure, axes = _axes(2.3, left=0.13, above=0.22 if len(of.counts) > 1 else 0.06)
    for series, counts in of.counts.items():
        shares = np.array(counts) / max(1, sum(counts))
        axes.stairs(shares, of.edges, label=series, **SERIES[series])
    if len(of.counts) > 1:
        # Above the axes, where it hides nothing.
        place: dict[str, Any] = {
            "loc": "lower right",
            "bbox_to_anchor": (1, 0.97),
            "ncols": len(of.counts),
            "borderpad": 0,
        }
        axes.legend(frameon=False, handlelength=1.4, labelcolor=INK, fontsize=FONT, **place)
    if of.edges[0] < 0 < of.edges[-1]:
        axes.axvline(0, color=MUTED, linewidth=0.6)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}" if share * 100 % 1 < 1e-9 else f"{share:.1%}")
    axes.set_xlabel(label)
    series = ", ".join(of.counts)
    return _svg(figure, name, f"Histogram of {label}: {series}")


def hexagons(name: str, of: Length) -> Markup:
    """Score against tokens; the stronger the color, the more completions, by powers."""
    from matplotlib.colors import ListedColormap, LogNorm

    figure, axes = _axes(2.3, left=0.2)
    tokens, scores = of.points.T
    drawn = axes.hexbin(tokens, scores, gridsize=(26, 12), mincnt=1, linewidths=0.2, edgecolors="face")
    drawn.set_cmap(ListedColormap(HEXAGONS))
    most = np.max(np.asarray(drawn.get_array()))
    drawn.set_norm(LogNorm(1, max(2, most)))
    axes.set_xlabel("tokens")
    axes.set_ylabel("score")
    return _svg(figure, name, "Score against the number of tokens of a completion, as hexagons")


def means(name: str, of: Sides) -> Markup:
    """Two means with a standard error to either side, one above the other."""
    figure, axes = _axes(1.0, left=0.23, below=0.26)
    rows = [(kind, mean) for kind, mean in zip(of.kinds, of.means, strict=True) if mean]
    for place, (_, mean) in enumerate(rows):
        is_second = place == len(rows) - 1
        style: dict[str, Any] = {"color": FIRST, "marker": "o"} if is_second else {"color": SECOND, "marker": "D"}
        axes.errorbar(mean.value, place, xerr=mean.error, markersize=5, capsize=3, linewidth=1.2, **style)
    axes.set_yticks(range(len(rows)), [kind for kind, _ in rows])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.margins(x=0.15)
    axes.grid(axis="x", color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    return _svg(figure, name, f"Mean score by {of.scorer}: {' and '.join(kind for kind, _ in rows)}")


def line(rewards: Sequence[float | None], low: float, high: float, width: int = 1000, height: int = 100) -> str:
    """The points of a polyline through the rewards that are known, between two bounds that all lines share."""
    last, size = max(1, len(rewards) - 1), (high - low) or 1.0
    return " ".join(
        f"{width * i / last:.0f},{height * (1 - (reward - low) / size):.1f}"
        for i, reward in enumerate(rewards)
        if reward is not None
    )


def _axes(height: float, left: float, below: float = 0.44, above: float = 0.06) -> "tuple[Figure, Axes]":
    """`left` is the part of the width, `below` and `above` the inches, that labels take: a layout engine would draw
    everything once more to know.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height))
        figure.subplots_adjust(left=left, right=0.955, bottom=below / height, top=1 - above / height)
        figure.patch.set_visible(False)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        axes.locator_params(axis="x", nbins=5)
        return figure, axes


def _svg(figure: "Figure", name: str, label: str) -> Markup:
    """The figure as an <svg> for a page that holds others: ids begin with `name`, and nothing tells when it was."""
    import matplotlib

    written = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for color, variable in COLORS.items():
        svg = svg.replace(color, f"var({variable})")
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box
    return Markup(re.sub(r"<svg[^>]*>", f'<svg {box[0]} role="img" aria-label="{escape(label)}">', svg, count=1))
