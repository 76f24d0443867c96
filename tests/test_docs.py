"""The documentation: its links lead somewhere, and the README stays short."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def prose(page):
    """The text of a page without its blocks of code."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```|^    .*?$", "", text, flags=re.MULTILINE | re.DOTALL)


def links(page):
    """Where the relative links and images of a page lead: pairs of a path (empty: the page itself) and a fragment."""
    targets = re.findall(r"\]\(([^()\s]+)\)", prose(page))
    return [target.partition("#")[::2] for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(page):
    """The fragments by which GitHub knows the headings of a page."""
    seen, found = Counter(), set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for path, fragment in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), path
        assert not fragment or fragment in anchors(target), f"{path}#{fragment}"


def test_slugs_are_those_of_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Choosing -error\n## `run.json`, the record\n## A_b [c](d.md)\n## A_b c\n    # code\n```\n# code\n```\n"
    )
    assert anchors(page) == {"choosing--error", "runjson-the-record", "a_b-c", "a_b-c-1"}


def test_readme_is_short():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130
    assert [line for line in lines if len(line) > 100] == []


def test_readme_links_every_page():
    linked = {(ROOT / path).resolve() for path, _ in links(README)}
    assert [page.name for page in DOCS if page.resolve() not in linked] == []


def test_the_changelog_has_the_version():
    from travelling import __version__

    assert f"\n## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
