"""The documents point at what is there: promises at tests, links at files, decisions by one number each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(#[^)\s]*)?\)")
ROW = re.compile(r"^\| (\d+) \|.*\| (.*) \|$", re.MULTILINE)
NAMED = re.compile(r"`((?:tests|sandboxes|policies)/[^`:]+)(?:::(\w+))?`")


def promises() -> list[tuple[int, str]]:
    text = (ROOT / "docs" / "specification.md").read_text()
    return [(int(number), tests) for number, tests in ROW.findall(text)]


def test_promises_are_numbered_without_gaps() -> None:
    assert [number for number, _ in promises()] == list(range(1, len(promises()) + 1))


def test_each_promise_names_a_test_that_exists() -> None:
    for number, tests in promises():
        named = NAMED.findall(tests)
        assert named or "pending" in tests, f"promise {number} names no test"
        missing = [file for file, test in named if not any(test in found.read_text() for found in ROOT.glob(file))]
        assert not missing, f"promise {number} names {missing}"


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_to_files(page: Path) -> None:
    targets = {target for target, _ in LINK.findall(page.read_text()) if "://" not in target}
    assert [target for target in sorted(targets) if not (page.parent / target).exists()] == []


def test_decisions_have_one_number_each() -> None:
    pages = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        assert page.read_text().startswith(f"# {int(page.name[:4])}. "), page.name
