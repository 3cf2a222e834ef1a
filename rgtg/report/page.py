"""The page of a run: one HTML file that needs no network, from its figures and pairs alone."""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from rgtg.evaluation.gates import Gate
from rgtg.evaluation.stats import Mean
from rgtg.report import charts
from rgtg.report.run_figures import Page, Side
from rgtg.report.token_tint import tint
from rgtg.report.visible_text import plain, visible

FOLDED = 110  # tokens of a side after which the others are folded
FOLDED_TEXT = 700  # characters of a text
SIGNS = {"pass": "✓", "warn": "!", "fail": "✕", "off": "–", "unknown": "?"}
LABELS = {"score": "score", "margin": "score margin of a pair", "tokens": "tokens"}


def render(page: Page) -> str:
    """The page as HTML. Its own policy forbids a browser every request, and every script but the page's."""
    style, script = _asset("page.css"), _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _template().render(
        page=page,
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'",
        means=[charts.means(f"m{i}", sides) for i, sides in enumerate(page.sides)],
        histograms={
            name: charts.histogram_chart(f"h-{name}", of, LABELS[name]) for name, of in page.histograms.items()
        },
        hexagons=charts.hexagons("x", page.length) if page.length and len(page.length.points) else None,
        steps=_steps(page),
    )


def _steps(page: Page) -> list[dict[str, Any]]:
    """The waterfall from all prompts to those with a pair: each bar begins where the one above it ends."""
    if not page.prompts or page.train is None or page.test is None:
        return []
    total = page.train + page.test + sum(n for _, n in page.without)
    left, steps = total, []
    for reason, n in page.without:
        left -= n
        steps.append({"name": reason, "n": -n, "start": 100 * left / total, "width": 100 * n / total, "kind": "lost"})
    whole = {"name": "prompts", "n": total, "start": 0.0, "width": 100.0, "kind": "whole"}
    kept = "with a ranking" if page.ranked else "with a pair"
    return [whole, *steps, {"name": kept, "n": left, "start": 0.0, "width": 100 * left / total, "kind": "kept"}]


def gauge(gate: Gate) -> dict[str, float] | None:
    """Where a gate's figure, bounds and thresholds lie on a line, in percent; None where there is no figure."""
    if gate.figure is None:
        return None
    named = {name: getattr(gate, name) for name in ("figure", "low", "high", "warn", "fail")}
    known = {name: value for name, value in named.items() if value is not None}
    low, high = min(known.values()), max(known.values())
    size = (high - low) or 1.0
    return {name: 4 + 92 * (value - low) / size for name, value in known.items()}


def number(value: float | None, digits: int = 3) -> str:
    """For people: a true minus, and no digits that say nothing."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    return f"{value:,.{digits}f}".replace("-", "−")


def figure(value: float | None) -> str:
    """Of any size: about three digits of it."""
    if value is None or isinstance(value, int):
        return number(value)
    size = abs(value)
    return number(value, 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3)


def signed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:+,.{digits}f}".replace("-", "−")


def percent(share: float | None, digits: int = 0) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def estimate(mean: Mean | None) -> str:
    return f"{signed(mean.value)} ± {number(mean.error)}" if mean else "–"


def duration(seconds: float) -> str:
    """Seconds, or hours and minutes of many."""
    if seconds < 600:
        return f"{seconds:,.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def tokens(side: Side, full: float, start: int = 0, stop: int | None = None) -> Markup:
    """The pieces of a side, each an element with its tint; the page's script shows their numbers."""
    shown = []
    for piece in side.pieces[start:stop]:
        step = tint(piece.increment, full)
        kind = "g" if piece.shared else f"p{step}" if step > 0 else f"m{-step}" if step < 0 else ""
        increment = "" if piece.increment is None else f' data-d="{piece.increment:+.3f}"'
        reward = "" if piece.reward is None else f' data-r="{piece.reward:+.3f}"'
        shown.append(f"<b{f' class={kind}' if kind else ''}{increment}{reward}>{visible(piece.text)}</b>")
    return Markup("".join(shown))


def reward_line(side: Side, page: Page) -> str:
    return charts.line([piece.reward for piece in side.pieces], *page.rewards)


def zero_line(page: Page) -> str | None:
    """Where the lines of cumulative rewards cross zero, if they do."""
    low, high = page.rewards
    return charts.line([0.0], low, high).partition(",")[2] if low < 0 < high else None


@cache
def _asset(name: str) -> str:
    return files("rgtg.report").joinpath(name).read_text()


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"SIGNS": SIGNS, "FOLDED": FOLDED, "FOLDED_TEXT": FOLDED_TEXT}
    environment.globals |= {"gauge": gauge, "tokens": tokens, "reward_line": reward_line, "zero_line": zero_line}
    environment.filters |= {"number": number, "signed": signed, "percent": percent, "estimate": estimate}
    environment.filters |= {"figure": figure, "duration": duration, "visible": visible, "plain": plain}
    return environment.from_string(_asset("page.html.jinja"))
