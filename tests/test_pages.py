"""What the pages name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    path.relative_to(ROOT)
    for folder in ("rgtg", "pipelines", "cluster", "tests")
    for path in sorted((ROOT / folder).rglob("README.md"))
] + [Path("README.md")]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_file_that_a_page_names_is_there(page):
    text = (ROOT / page).read_text()
    named = re.findall(r"`([\w/]+\.py)`", text) + re.findall(r"\]\(((?!http)[^)#]+)", text)
    missing = [name for name in named if not any((place / name).exists() for place in ((ROOT / page).parent, ROOT))]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_make_target_that_a_page_names_is_there(page):
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"`make ([a-z0-9-]+)`", (ROOT / page).read_text())) <= targets
