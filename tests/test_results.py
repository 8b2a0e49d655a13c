"""The page of results says what the runs' reports say."""

import pytest

from benchmarks.results import PAGE, filled
from tests.support.project import ROOT


def test_the_page_is_made_of_the_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page) == page
