"""`kdm report compare`: runs in folders, git revisions and DVC experiments side by side."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from typer.testing import CliRunner, Result

from kdm_core.serialization import read_json, write_json
from pipeline.kdm.cli import app
from tests.support.browser import browser, emulate
from tests.support.project import environment
from tests.support.report_project import SEEN, finished

__all__ = ["browser", "finished"]
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def place(source: Path, name: str, change: Change = lambda document: None) -> None:
    """Copy the reports of a run to a folder, its report.json changed."""
    shutil.copytree(source / "reports", Path(name) / "reports")
    path = Path(name) / "reports/report.json"
    document = read_json(path)
    change(document)
    write_json(path, document)


def compare(*names: str) -> Result:
    return CliRunner().invoke(app, ["report", "compare", *names, "--out", "page.html"])


def page() -> str:
    return Path("page.html").read_text(encoding="utf-8")


def test_runs_of_folders_and_files(finished: dict[str, Path]) -> None:
    place(finished["image"], "a")
    place(finished["image"], "b", lambda document: document["students"].pop("kdm-f"))
    result = compare("a", "b/reports/report.json")
    assert result.exit_code == 0, result.output
    told = page()
    # Teachers and students; then as many of them, and real samples, at the number of these.
    assert told.count('scope="row" class="name"') == 3 + 2 + 4 + 4
    assert told.count("<small>close</small>") == 3 and told.count("<small>passed</small>") == 2
    assert told.count("<img") == 2 and "b/reports/report.json" in told
    assert "conditions differ" not in told and "condition differs" not in told
    assert re.search(r"of the real samples lie among kdm(-f)? of \S+’s \(recall_vgg16\)", told)
    assert re.search(r'eyebrow">\d+ \w+ 20\d\d · 2 runs', told)
    assert len(told) < 4e6


def test_figures_that_a_loss_has_seen_are_marked(finished: dict[str, Path]) -> None:
    place(finished["image"], "a")
    place(finished["image"], "b", lambda document: document.update(seen={"kdm": SEEN}))
    assert compare("a").exit_code == 0
    assert "has seen this network" not in page()
    Path("page.html").unlink()
    assert compare("a", "b").exit_code == 0
    told = page()
    assert told.count(": the figure flatters the student") == 1  # LPIPS, in the table of 500
    assert told.index("fd_classifier") < told.index("lpips_vgg") and "<code>fd_vgg16" not in told


def test_conditions_that_differ_are_warned_of(finished: dict[str, Path]) -> None:
    def change(document: dict[str, Any]) -> None:
        document["n"] = 400
        document["conditions"] |= {"n": 400, "teacher": "f" * 64}
        document["extractors"]["classifier"]["fingerprint"] = "another"

    place(finished["image"], "a")
    place(finished["image"], "b", change)
    assert compare("a", "b").exit_code == 0
    told = page()
    assert "500 in a, 400 in b" in told and "can only be compared for n → ∞" in told
    assert "compared with its own teacher" in told
    # Nor do figures of 500 and of 400 samples stand in one column.
    titles = re.findall("<h3>(.*?)</h3>", told)
    assert titles == ["500 samples of each", "400 samples of each",
                      "360 samples of each, as many as there are other real ones"]
    # Nor does anything lead by them.
    assert "the nearest is" not in told and "<dl" not in told
    assert '"sentence">a: With 1 network evaluation a sample instead of 35' in told
    assert "figures in features of classifier cannot be compared" in told
    assert "figures in features of vgg16 cannot" not in told


def test_students_of_different_data_stand_apart(finished: dict[str, Path]) -> None:
    place(finished["image"], "a")
    place(finished["points"], "b")
    assert compare("a", "b").exit_code == 0
    told = page()
    assert told.count('class="overview sortable"') == 3
    assert "They are of 2 data sets" in told and "stand apart" in told
    digits, board = told.index("On digits"), told.index("On checkerboard")
    assert told.index("fd_vgg16", digits) < board < told.index("sliced_wasserstein")


def test_distances_to_other_real_samples_stand_apart(finished: dict[str, Path]) -> None:
    """As of runs of which one has `evaluation.reference: test`."""

    def change(document: dict[str, Any]) -> None:
        for extractor in document["extractors"].values():
            extractor |= {"reference": "test split", "reference_n": 360}

    place(finished["image"], "a")
    place(finished["image"], "b", change)
    assert compare("a", "b").exit_code == 0
    titles = [title for title in re.findall("<h2>(.*?)</h2>", page()) if title[:3] == "On "]
    assert [title.split(", ")[-1] for title in titles] == ["beside its train split",
                                                           "beside its test split"]


@pytest.mark.parametrize(("content", "problem"), [
    ("{", "b: report.json is damaged"), ('{"n": 5}', "title: Field required"),
])
def test_damaged_report_is_named(finished: dict[str, Path], content: str, problem: str) -> None:
    place(finished["points"], "a")
    place(finished["points"], "b")
    Path("b/reports/report.json").write_text(content)
    result = compare("a", "b")
    assert result.exit_code == 1 and problem in result.stderr
    assert not Path("page.html").exists()


def test_refusals(finished: dict[str, Path]) -> None:
    place(finished["points"], "a")
    Path("empty").mkdir()
    assert "empty: there is no reports/report.json" in compare("a", "empty").stderr
    assert "a run is named twice" in compare("a", "a").stderr
    result = compare("a", "nowhere")
    assert result.exit_code == 1 and result.stderr.startswith("error: nowhere")
    Path("page.html").write_text("mine")
    assert "page.html exists already" in compare("a").stderr
    assert page() == "mine"


def test_hostile_report_is_inert(finished: dict[str, Path]) -> None:
    attack = "<script>alert(1)</script>"

    def change(document: dict[str, Any]) -> None:
        document["dataset"] = document["title"] = attack
        document["students"][attack] = document["students"]["kdm"]
        document["warnings"] = [attack]

    place(finished["points"], "a", change)
    assert compare("a").exit_code == 0
    assert page().count("<script") == 1


def command(*arguments: str) -> None:
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_revisions_and_experiments(finished: dict[str, Path]) -> None:
    """In a repository whose stage writes a report as this project's does."""
    template = finished["points"] / "reports/report.json"
    Path("stage.py").write_text(
        "import json, pathlib\n"
        f"document = json.loads(pathlib.Path({str(template)!r}).read_text())\n"
        "seed = int(pathlib.Path('params.yaml').read_text().split()[1])\n"
        "document['teacher']['nfe'] = seed\n"
        "pathlib.Path('reports').mkdir(exist_ok=True)\n"
        "pathlib.Path('reports/report.json').write_text(json.dumps(document))\n")
    Path("params.yaml").write_text("seed: 1001\n")
    Path("dvc.yaml").write_text(
        f"stages:\n  report:\n    cmd: {sys.executable} stage.py\n    params: [seed]\n"
        "    metrics: [{reports/report.json: {cache: false}}]\n")
    for arguments in ("git init -q", "git config user.email a@example.org",
                      "git config user.name A", "dvc init -q", "dvc repro -q", "git add -A",
                      "git commit -qm one", "git tag first",
                      "dvc exp run -q -S seed=1002 -n other"):
        command(*arguments.split())
    assert compare("first", "other").exit_code == 0
    told = page()
    assert "1,001" in told and "1,002" in told and '<td class="run" data-order="other">' in told
    Path("page.html").unlink()
    result = compare("first", "none-such")
    assert result.exit_code == 1 and "nor a git revision or DVC experiment" in result.stderr


def test_the_nearest_students_open_the_page(finished: dict[str, Path]) -> None:
    def change(document: dict[str, Any]) -> None:
        document["students"]["kdm"] |= {"fd_vgg16": 1.0, "images_per_s": 2000.0}
        document["students"]["kdm-f"] |= {"fd_vgg16": 0.5, "recall_vgg16": 0.9}
        document["verdicts"]["students"]["kdm-f"]["word"] = "failed"
        document["extractors"]["classifier"]["fingerprint"] = "another"

    place(finished["image"], "a")
    place(finished["image"], "b", change)
    assert compare("a", "b").exit_code == 0
    told = page()
    assert ("By Fréchet distance (fd_vgg16) to real data, the nearest is kdm of b at 1 [4.80, 5.20]"
            ", then kdm of a at 5 [4.80, 5.20], then kdm-f of a at 5 [4.80, 5.20]. Lower is better."
            ) in told
    # What failed leads in nothing.
    assert re.findall("<dt>(.*?)</dt><dd><strong>(.*?)</strong>", told) == [
        ("Distance to the data", "1"), ("Speed", "2,000"), ("Variety", "70.0 %")]
    assert "samples a second, for kdm of b. Next is kdm of a with 1,500." in told
    Path("page.html").unlink()
    place(finished["image"], "c", lambda document: document["conditions"].update(threads=8))
    assert compare("a", "c").exit_code == 0
    assert "samples a second, for" not in page() and "1 condition differs" in page()


def test_names_in_a_report_are_no_templates(finished: dict[str, Path]) -> None:
    def change(document: dict[str, Any]) -> None:
        document["students"] = {"{0.__class__}": document["students"]["kdm"], "{}": {
            **document["students"]["kdm"]}}

    place(finished["points"], "a", change)
    assert compare("a").exit_code == 0
    assert "for {0.__class__} of a: Sliced Wasserstein" in page()


def test_page_in_a_browser(finished: dict[str, Path], folder: Path, browser: Chrome) -> None:
    place(finished["image"], "a")
    place(finished["image"], "b", lambda document: document["students"]["kdm"].update(fd_vgg16=1.0))
    assert compare("a", "b").exit_code == 0
    emulate(browser, 1280, 800, dark=False)
    browser.get((folder / "page.html").as_uri())
    pictures = browser.find_elements("tag name", "img")
    assert browser.find_element("css selector", ".sentence").rect["y"] < pictures[0].rect["y"]
    assert all(one.rect["y"] + one.rect["height"] < 800 for one in pictures)
    assert browser.execute_script("return document.documentElement.scrollHeight") < 3000
    emulate(browser, 390, 800, dark=True)
    browser.get((folder / "page.html").as_uri())
    assert browser.get_log("browser") == []
    button = browser.find_element("xpath", "//th[.//code[text()='fd_vgg16']]//button")
    button.click()
    rows = browser.find_elements("css selector", "table.sortable tbody tr")
    assert rows[0].find_element("tag name", "th").text == "kdm\nclose"
    assert rows[0].find_element("tag name", "td").text == "b"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
