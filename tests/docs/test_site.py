"""The documentation as a site: it builds without a warning, and asks nobody else for anything."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from tests.support.browser import browser, emulate
from tests.support.imports import ROOT
from tests.support.project import environment

__all__ = ["browser"]
LOADED = re.compile(r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//"""
                    r"""|<link\b(?=[^>]*rel=["']?(?:stylesheet|preload|preconnect|icon))[^>]*"""
                    r"""href=["']?(?:https?:)?//|url\(["']?(?:https?:)?//|@import""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT, env=environment(NO_MKDOCS_2_WARNING="1"), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_there(site: Path) -> None:
    pages = {page.with_suffix(".html").name for page in (ROOT / "docs").glob("*.md")}
    assert pages | {"index.html", "benchmarks.html"} <= {page.name for page in site.glob("*.html")}
    assert 'src="results/digits/samples.png"' in (site / "index.html").read_text()
    assert 'id="kdm_core.students.train.train"' in (site / "api.html").read_text()
    assert not list(site.rglob("*.py"))


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    assert [f"{file.name}: {match[0]}" for file in sorted(site.rglob("*"))
            if file.suffix in (".html", ".css")
            for match in LOADED.finditer(file.read_text())] == []


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_pages_fit_the_screen(site: Path, browser: Chrome, width: int, dark: bool) -> None:
    emulate(browser, width, 844, dark)
    browser.get((site / "index.html").as_uri())
    browser.execute_script("localStorage.clear()")  # the colours that were shown before
    for name in ("index", "parameters", "api", "student", "results"):
        browser.get((site / f"{name}.html").as_uri())
        scheme, wide = browser.execute_script(
            "return [document.body.dataset.mdColorScheme, document.documentElement.scrollWidth]")
        assert (scheme, wide <= width) == ("slate" if dark else "default", True), name
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
