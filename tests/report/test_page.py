"""The page holds what the figures say, whatever the texts hold, and asks for nothing from outside."""

import html
import json
import re
import tomllib
from dataclasses import replace
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rgtg import report
from rgtg.evaluation.gates import Gate
from rgtg.report.page import FOLDED, duration, gauge, render
from rgtg.report.run_figures import Gates, Length
from tests.report.pages import GATES, page, pair, side
from tests.report.test_visible_text import HOSTILE

MOST = 2_000_000  # bytes
SIDES = ("chosen", "rejected")
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Reader(HTMLParser):
    """The elements of a page and its text outside of scripts, styles and charts. Raises where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[tuple[str, str]] = []  # text, and the elements around it
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if not {"script", "style", "svg"} & set(self.open):
            self.said.append((data, " ".join(self.open)))

    @property
    def text(self) -> str:
        return " ".join(" ".join(data for data, _ in self.said).split())


def numbers_in(value):
    if isinstance(value, dict):
        value = [*value.values(), *value.keys()]
    if isinstance(value, list | tuple):
        for part in value:
            yield from numbers_in(part)
    elif isinstance(value, str):
        yield from (float(n) for n in re.findall(r"\d+(?:\.\d+)?", value))
    elif value is not None:
        yield float(value)


def is_in(shown: str, known: list[float]) -> bool:
    """Whether a number of the page is one of `known`, rounded as the page has it; a share may be in percent."""
    digits = len(shown.partition(".")[2])
    value = abs(float(shown.replace(",", "")))
    return any(round(abs(k) * factor, digits) == pytest.approx(value) for k in known for factor in (1, 100))


def test_every_number_of_the_page_is_in_its_figures():
    made = page()
    figures = json.loads(json.dumps(made.figures()))
    of_tokens = list(numbers_in([pair[side].pop("pieces") for pair in figures["pairs"] for side in SIDES]))
    known = list(numbers_in(figures))
    reader = Reader(render(made))
    # Headings and sentences of the page itself, and times, which are written in other units than seconds.
    fixed = {"95 % bounds"}
    for text, around in reader.said:
        if text.strip() in fixed or "review" in text or re.search(r"\d (s|min)$", text):
            continue
        for shown in re.findall(r"\d[\d,]*(?:\.\d+)?", text):
            assert is_in(shown, known), (shown, text, around)
    for tag, attributes in reader.tags:
        for name in ("data-d", "data-r"):
            if name in attributes:
                assert is_in(attributes[name].lstrip("+-"), of_tokens), (tag, attributes)


def test_the_page_shows_what_there_is():
    text = Reader(render(page())).text
    for said in (
        *("Run 2026-11-27", "No. At least one gate has failed.", "It falls by 3.21.", "1,234", "0.977"),
        *("guided over unguided +0.360 ± 0.008", "n = 500", "−4.50 to −2.50", "−2.00", "ρ = +0.12 over all"),
        *("the completions are too similar −8", "with a pair 1,290", "margin +0.456", "agreement +0.25", "system"),
        *("200 of 987 completions", "A sample: 200 of 350.", "50 % 0.663 100 % 0.709"),
        *("2 h 02 min", "177,242", "sha256:abc", "half of the pairs could not be used", "chosen is longer in 56 %"),
    ):
        assert said in text, said
    assert "was not gated" not in text


def test_nothing_is_asked_for_from_outside():
    text = render(page())
    reader = Reader(text)
    assert not [tag for tag, _ in reader.tags if tag in ("link", "img", "iframe", "object", "embed", "form", "base")]
    for _, attributes in reader.tags:
        for name in ("href", "src", "xlink:href", "action", "srcset"):
            assert attributes.get(name, "#").startswith("#"), attributes
    assert not re.search(r"@import|url\((?!#)", text)
    policy = next(a["content"] for t, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe-inline'; script-src 'sha256-" in policy


def test_the_same_figures_are_the_same_bytes():
    assert render(page()) == render(page())


def test_ids_are_unique_and_links_lead_somewhere():
    tags = Reader(render(page())).tags
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = {a[name][1:] for _, a in tags for name in ("href", "xlink:href") if a.get(name)}
    assert links <= set(ids)


def hostile_page(text):
    gate = Gate(text, "warn", 1.0, None, None, 1, None, None, text, text)
    one = side(text, method=text, finish=text)
    without = replace(side(), text=text, pieces=[], method=text)
    pairs = [pair(prompt=[(text, text)], chosen=one, rejected=without, prompt_id=text)]
    return page(
        pairs=pairs,
        gates=Gates("warn", [gate]),
        warnings=[text],
        without=[(text, 3)],
        settings={text: text},
        digests={text: text},
        versions={text: text},
        run_id=text,
        missing={"judge": text},
        method=text,
        strategy=text,
        created=text,
    )


def test_hostile_texts_are_text():
    """No element, no attribute and no character that a browser acts on."""
    text = render(hostile_page(HOSTILE))
    text.encode()
    assert text.count("<script") == text.count("</script") == 1
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\ufeff\0\x1b\ud800-\udfff]", text)
    reader = Reader(text)
    expected = Reader(render(hostile_page("twelve words")))
    assert {tag for tag, _ in reader.tags} <= {tag for tag, _ in expected.tags} | {"i"}
    assert {name for _, a in reader.tags for name in a} <= {name for _, a in expected.tags for name in a}
    json.dumps(hostile_page("x").figures())


@pytest.mark.parametrize("text", ["<" * 400, "🙂" * 400, " " * 400, "\u202e" * 400, "x\n" * 200])
def test_the_largest_page_is_below_two_megabytes(text):
    """Twelve pairs whose sides and prompts are all as large as a run makes them (pipelines/report_pairs.py)."""
    one = side(text)
    pairs = [pair(chosen=one, rejected=one, prompt=[("user", text * 2)]) for _ in range(12)]
    assert len(render(page(pairs=pairs)).encode()) < MOST


def test_long_texts_are_folded():
    long, short = side("x" * (FOLDED + 5)), side("x" * FOLDED)
    folds = [Reader(render(page(pairs=[pair(chosen=s, rejected=short)]))).tags for s in (short, long)]
    assert [sum(tag == "details" for tag, _ in tags) for tags in folds] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gates": None}, "Nobody has checked: this run was not gated."),
        ({"gates": Gates("pass", [])}, "Yes. All gates that are on have passed."),
        ({"gates": Gates("warn", GATES.gates[1:])}, "With care"),
        ({"complete": False}, "The run is not complete."),
        ({"pairs": [], "missing": {"pairs": "The run has no finished pairs."}}, "The run has no finished pairs."),
        ({"length": None, "histograms": {}, "missing": {"distributions": "Nothing yet."}}, "Nothing yet."),
        ({"sides": [], "missing": {"scores": "None to compare."}}, "None to compare."),
        ({"ranked": True}, "rankings to train on"),
        ({"length": Length(None, None, None, 0, 0, page().length.points[:0])}, "Lengths"),
        (
            {"train": None, "test": None, "prompts": None, "completions": None, "mean_margin": None, "right": None},
            "Run",
        ),
    ],
)
def test_what_is_not_there_is_a_sentence(changes, said):
    assert said in Reader(render(page(**changes))).text


def test_texts_without_tokens():
    one = replace(side(), pieces=[], text="a plain text", hidden=7)
    text = render(page(pairs=[pair(chosen=one, rejected=one)]))
    assert "a plain text" in html.unescape(re.sub("<[^>]*>", "", text))
    assert "7 more characters are not shown" in Reader(text).text


def test_a_gauge_puts_figure_bounds_and_thresholds_on_one_line():
    at = gauge(GATES.gates[1])
    assert at["warn"] < at["low"] < at["figure"] < at["high"] < at["fail"]
    assert gauge(GATES.gates[3]) is None


def test_what_the_page_reads_is_installed_with_it():
    root = Path(report.__file__).parents[2]
    declared = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "rgtg.report"
    ]
    read = {path.name for path in (root / "rgtg" / "report").iterdir() if path.is_file() and path.suffix != ".py"}
    assert {name for name in read if any(fnmatch(name, pattern) for pattern in declared)} == read


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0 s"), (599.9, "599.9 s"), (664, "11 min"), (7300, "2 h 02 min")]
)
def test_durations(seconds, said):
    assert duration(seconds) == said
