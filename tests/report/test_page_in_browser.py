"""The page in a real browser: Chromium, where it is installed."""

import pytest

from rgtg.report.page import render
from tests.browser import CHROMIUM, Browser
from tests.report.pages import page, pair, side
from tests.report.test_page import hostile_page
from tests.report.test_visible_text import HOSTILE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, of Debian's packages"),
]
NOISE = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path / "profile") as opened:
        yield opened


@pytest.fixture
def show(browser, tmp_path):
    """Open a page from a file."""

    def open_page(made):
        file = tmp_path / "index.html"
        file.write_text(render(made), encoding="utf-8")
        browser.open(file.as_uri())
        return file.as_uri()

    return open_page


def focused(browser):
    return browser.run("document.activeElement.className || document.activeElement.tagName")


@pytest.mark.parametrize("make", [page, lambda: hostile_page(HOSTILE)])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_no_error_no_request_and_no_sideways_scrolling(browser, show, make, width, scheme):
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
    )
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    url = show(make())
    browser.run("scrollTo(0, document.body.scrollHeight)")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert not [event for event in browser.events if event["method"] in NOISE]
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert asked == [url]
    assert browser.run("document.scripts.length") == 1
    assert len(browser.call("Page.printToPDF", printBackground=True)["data"]) > 10_000


def test_text_is_legible_in_light_and_dark(browser, show):
    """Contrast of at least 4.5 (WCAG AA) between all text outside of charts and what is behind it."""
    show(page())
    for scheme in ("light", "dark"):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        assert browser.run(CONTRAST) == [], scheme


# The texts whose contrast is too low. A background that shines through is mixed with what is behind it.
CONTRAST = """(() => {
  const parse = (color) => {
    const parts = color.match(/[\\d.]+/g).map(Number);
    if (color.startsWith("color(")) return [...parts.slice(0, 3).map((x) => 255 * x), parts[3] ?? 1];
    return [...parts.slice(0, 3), parts[3] ?? 1];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((x, i) => a * x + (1 - a) * below[i]);
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    const own = parse(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, behind(element.parentElement));
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((x) => (x / 255 <= 0.04045 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || element.closest("svg, script, .unseen, #tip")) continue;
    const below = behind(element);
    const [a, b] = [light(over(parse(getComputedStyle(element).color), below)), light(below)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) found.push([contrast.toFixed(2), element.className, texts.currentNode.data].join(" "));
  }
  return [...new Set(found)].slice(0, 10);
})()"""


def test_the_keyboard_reaches_everything(browser, show):
    show(page(pairs=[pair(chosen=side("x" * 200))]))
    browser.press("Tab")
    assert focused(browser) == "skip"
    assert browser.run("document.activeElement.getBoundingClientRect().left") >= 0, "it is seen where it has the focus"
    reached = []
    for _ in range(40):
        browser.press("Tab")
        reached.append(focused(browser))
        if reached[-1] == "BODY":
            break
    assert reached.count("tokens") == 2
    assert "SUMMARY" in reached
    assert "scroll" in reached


def test_arrow_keys_go_from_token_to_token(browser, show):
    made = page(pairs=[pair(chosen=side("ab c" * 50))])
    show(made)
    pieces = made.pairs[0].chosen.pieces
    shown = "document.getElementById('tip').innerText.split('\\n').join(' ')"
    browser.run("document.querySelector('.tokens').focus()")
    assert browser.run("document.getElementById('tip').hidden")
    browser.press("ArrowRight")
    assert "not known" in browser.run(shown)
    for _ in range(3):
        browser.press("ArrowRight")
    said = browser.run(shown).replace("−", "-")
    assert said.startswith("c")
    assert f"{pieces[3].increment:+.3f}" in said
    assert f"{pieces[3].reward:+.3f}" in said
    assert browser.run("document.querySelectorAll('b.at').length") == 1
    assert not browser.run("document.querySelector('.tokens details').open")
    browser.press("End")
    assert browser.run("document.querySelector('.tokens details').open"), "what is folded opens"
    assert f"{pieces[-1].reward:+.3f}" in browser.run(shown).replace("−", "-")
    browser.press("Escape")
    assert browser.run("document.getElementById('tip').hidden")


def test_a_pointer_shows_the_numbers_of_a_token(browser, show):
    made = page()
    show(made)
    browser.run("document.querySelectorAll('.tokens b')[4].scrollIntoView({block: 'center', behavior: 'instant'})")
    x, y = browser.run(
        "(() => { const r = document.querySelectorAll('.tokens b')[4].getBoundingClientRect();"
        "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    said = browser.run("document.getElementById('tip').innerText").replace("−", "-")
    assert f"{made.pairs[0].chosen.pieces[4].increment:+.3f}" in said
    assert browser.run("document.querySelector('.cursor').getAttribute('x1') > 0")
