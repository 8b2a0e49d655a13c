"""Links within the documentation lead somewhere, also those in messages of the code."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.support.imports import PACKAGES, ROOT
from tests.support.markdown import PAGES, anchors, links


def broken(page: Path, target: str) -> str:
    """What is wrong with a link; nothing if it leads somewhere or out of the repository."""
    if re.match(r"[a-z]+:", target):
        return ""
    path, _, anchor = unquote(target).partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.is_relative_to(ROOT) or not file.exists():
        return f"{target}: there is no {path}"
    if anchor and anchor not in anchors(file):
        return f"{target}: no heading of {file.name} is #{anchor}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert [problem for target in links(page) if (problem := broken(page, target))] == []


def test_pages_named_in_the_code_exist() -> None:
    named = [(file, match[0]) for folder in (*PACKAGES, "benchmarks", "tests")
             for file in sorted((ROOT / folder).rglob("*"))
             if file.suffix in (".py", ".yaml", ".j2", ".html", ".md") and file != Path(__file__)
             for match in re.finditer(r"docs/[\w-]+\.md(#[\w-]+)?", file.read_text())]
    assert named
    assert [f"{file.relative_to(ROOT)}: {problem}" for file, name in named
            if (problem := broken(ROOT / "README.md", name))] == []


@pytest.mark.parametrize(("target", "problem"), [
    ("https://host/page", ""), ("page.md", ""), ("page.md#a--b-c", ""), ("#a--b-c-1", ""),
    ("gone.md", "there is no"), ("page.md#a-b-c", "no heading"), ("#d", "no heading"),
    ("../../etc/passwd", "there is no")])
def test_broken_links_are_found(
    target: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("# A & `b` c\n\n```sh\n# d\n```\n\n## A & b [c](x)\n")
    found = broken(page, target)
    assert problem in found and bool(problem) == bool(found)
