"""The report in a real browser: it loads, shows its pictures, sorts, and runs nothing foreign."""

import re
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.support.browser import browser, emulate
from tests.support.report_project import (
    IMAGE,
    STUDENTS,
    change_evaluation,
    finished,
    make_report,
    measured,
    undrawn,
    write_project,
    write_studies,
)

__all__ = ["browser", "finished", "undrawn"]
ATTACK = """<script>window.attacked = 1</script><img src=x onerror="window.attacked = 1">"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def show(browser: Chrome, folder: Path, width: int = 1200) -> None:
    """Open the report of a run's folder."""
    emulate(browser, width, 900, dark=False)
    browser.get((folder / "reports/report.html").as_uri())


def unfold(browser: Chrome) -> None:
    browser.execute_script(
        "for (const fold of document.querySelectorAll('details')) fold.open = true")


def order(browser: Chrome, table: int = 0) -> list[str]:
    """The models as a chief table lists them."""
    found = browser.find_elements("css selector", "table.sortable")[table]
    return [cell.get_attribute("data-order") or "" for cell in
            found.find_elements("css selector", "tbody th")]


def heading(browser: Chrome, key: str, table: int = 0) -> WebElement:
    """The button by which a chief table is sorted by a figure."""
    found = browser.find_elements("css selector", "table.sortable")[table]
    return found.find_element("xpath", f".//th[.//code[.='{key}']]//button")


@pytest.mark.parametrize("kind", ["image", "points"])
def test_page_loads_and_shows_its_pictures(
    kind: str, finished: dict[str, Path], browser: Chrome
) -> None:
    show(browser, finished[kind])
    assert browser.get_log("browser") == []
    images = browser.find_elements("tag name", "img")
    assert len(images) == {"image": 9, "points": 8}[kind]
    unfold(browser)
    for width, dark in ((1200, False), (390, False), (390, True), (1200, True)):
        emulate(browser, width, 800, dark)
        for image in images:
            assert int(image.get_property("naturalWidth")) > 0
            assert image.is_displayed() and 100 < image.size["width"] <= width
        assert browser.execute_script(
            "return document.documentElement.scrollWidth <= window.innerWidth && "
            "window.innerWidth") == width
        red, green, blue = map(int, re.findall(r"\d+", browser.execute_script(
            "return getComputedStyle(document.body).backgroundColor"))[:3])
        assert (max(red, green, blue) < 60) if dark else (min(red, green, blue) > 200)


@pytest.mark.usefixtures("undrawn")
def test_table_sorts_by_click_and_keyboard(folder: Path, browser: Chrome) -> None:
    write_project("image")
    change_evaluation("kdm-f", student__fd_vgg16=measured(3.5), student__precision_vgg16=measured(
        0.9), student__lpips_vgg=measured(0.04))
    make_report()
    show(browser, folder)
    kdm, kdm_f, real = *STUDENTS, "held-out real data"
    unfold(browser)
    assert order(browser) == ["teacher", kdm, kdm_f]
    assert order(browser, 1) == ["teacher", kdm, kdm_f, real]
    distance = heading(browser, "fd_vgg16")
    distance.click()
    assert order(browser) == [kdm_f, "teacher", kdm]  # 3.5, 4, 5
    cell = distance.find_element("xpath", "..")
    assert cell.get_attribute("aria-sort") == "ascending"
    distance.send_keys(Keys.ENTER)
    assert order(browser) == [kdm, "teacher", kdm_f]
    assert cell.get_attribute("aria-sort") == "descending"
    heading(browser, "precision_vgg16").send_keys(Keys.SPACE)  # the higher, the better
    assert order(browser) == [kdm_f, "teacher", kdm]
    assert cell.get_attribute("aria-sort") is None
    # Those without a figure come last, whichever the direction.
    for first in ([kdm_f, kdm], [kdm, kdm_f]):
        heading(browser, "lpips_vgg").click()
        assert order(browser)[:2] == first
    browser.find_element("css selector", "table.sortable thead .name button").click()
    assert order(browser) == [kdm, kdm_f, "teacher"]
    # A table by itself.
    heading(browser, "fd_vgg16", 1).send_keys(Keys.ENTER)
    assert order(browser, 1) == [real, "teacher", kdm, kdm_f]  # 3.1, 5.1, 6.1, 6.1
    assert order(browser) == [kdm, kdm_f, "teacher"]
    assert browser.get_log("browser") == []


def test_wide_table_scrolls_within_itself_on_a_phone(
    finished: dict[str, Path], browser: Chrome
) -> None:
    show(browser, finished["image"], width=390)
    scroll, table = (browser.find_element("css selector", selector)
                     for selector in (".scroll", "table.sortable"))
    assert table.size["width"] > 600 and scroll.size["width"] < 390
    browser.execute_script("arguments[0].scrollLeft = 300", scroll)
    name = browser.find_element("css selector", "table.sortable tbody th")
    assert name.rect["x"] - scroll.rect["x"] < 5  # it stays in sight


def test_verdicts_are_seen_first(finished: dict[str, Path], browser: Chrome) -> None:
    for width in (1200, 390):
        show(browser, finished["image"], width)
        found = browser.find_elements("css selector", ".verdicts .verdict")
        assert [one.text for one in found] == ["passed", "close", "close"]
        top = browser.find_element("tag name", "img").rect["y"]
        assert all(one.is_displayed() and one.rect["y"] < top for one in found)
        for kind, count in (("why", ""), ("warnings", "2 warnings"),
                            ("absent", "1 thing not measured")):
            summary = browser.find_element("css selector", f"details.{kind} summary")
            top = browser.find_element("tag name", "img").rect["y"]
            assert summary.is_displayed() and summary.rect["y"] < top and count in summary.text
            line = browser.find_element("css selector", f"details.{kind} li")
            assert not line.is_displayed()
            summary.click()
            assert line.is_displayed()


@pytest.mark.parametrize("kind", ["image", "points"])
def test_page_opens_with_verdict_picture_and_figures(
    kind: str, finished: dict[str, Path], browser: Chrome
) -> None:
    emulate(browser, 1280, 800, dark=False)
    browser.get((finished[kind] / "reports/report.html").as_uri())
    shown = [browser.find_element("css selector", selector) for selector in
             ("h1", ".sentence", ".verdicts", ".first img", ".headlines", ".overview")]
    tops, ends = ([one.rect["y"] + one.rect["height"] * part for one in shown] for part in (0, 1))
    assert tops == sorted(tops) and ends[3] < 800  # the picture's lower edge
    assert browser.execute_script("return document.documentElement.scrollHeight") < 3000


def test_failures_leave_the_picture_on_the_first_screen(folder: Path, browser: Chrome) -> None:
    write_project("image")
    why = [f"its figure number {i} is far from that of the teacher, by any measure, at 500 samples "
           "of each" for i in range(5)]
    failed = {"word": "failed", "why": why, "unknown": []}
    for name in STUDENTS:
        change_evaluation(name, verdicts={"teacher": failed, "student": failed})
    make_report()
    for width, height in ((1280, 800), (390, 844)):
        emulate(browser, width, height, dark=False)
        browser.get((folder / "reports/report.html").as_uri())
        picture = browser.find_element("css selector", ".first img").rect
        assert picture["y"] + picture["height"] < height
        seen = browser.find_elements("css selector", ".verdicts small")
        assert [one.text.lower() for one in seen] == 3 * why[:1] and seen[0].is_displayed()
        browser.find_element("css selector", "details.why summary").click()
        lines = browser.find_elements("css selector", "details.why li")
        assert [one.text for one in lines] == 3 * why


def test_eigenvalues_are_shown_once(folder: Path, browser: Chrome) -> None:
    """By the study of them where there is one, which says more."""
    title = "Eigenvalues of the students’ operators"
    write_project("image")
    make_report()
    show(browser, folder)
    assert title in browser.page_source
    for name in STUDENTS:
        write_studies(name, {"spectrum": {"count": 32}})
    make_report()
    show(browser, folder)
    assert title not in browser.page_source and "The spectrum" in browser.page_source
    assert (folder / "reports/figures/spectrum.png").exists()


@pytest.mark.parametrize("kind", ["image", "points"])
def test_a_phone_shows_the_chief_figures_beside_the_names(
    kind: str, finished: dict[str, Path], browser: Chrome
) -> None:
    show(browser, finished[kind], width=390)
    cells = browser.find_elements("css selector", ".overview tbody tr:first-child td")
    assert all(cell.rect["x"] + cell.rect["width"] < 390 for cell in cells[:2])
    assert cells[0].text and cells[1].text  # how good, how fast


@pytest.mark.parametrize("kind", ["image", "points"])
def test_pictures_are_shown_once_with_few_words(
    kind: str, finished: dict[str, Path], browser: Chrome
) -> None:
    show(browser, finished[kind])
    shown = [image.get_attribute("src") for image in browser.find_elements("tag name", "img")]
    assert len(set(shown)) == len(shown) > 7
    words = browser.execute_script(
        "return [...document.querySelectorAll('figcaption')].map((caption) => "
        "[...caption.querySelectorAll(':scope > p')].map((text) => text.textContent).join(' '))")
    assert words and all(0 < len(text.split()) <= 40 for text in words)


def test_pictures_have_no_ground_of_their_own(
    finished: dict[str, Path], browser: Chrome
) -> None:
    for kind in ("image", "points"):
        show(browser, finished[kind])
        unfold(browser)
        corners = browser.execute_script("""
            return [...document.images].map((image) => {
              const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
              const context = canvas.getContext("2d");
              context.drawImage(image, 0, 0);
              return context.getImageData(0, 0, 1, 1).data[3];
            })""")
        assert corners and not any(corners)


def test_page_is_whole_without_its_script(
    finished: dict[str, Path], browser: Chrome
) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(browser, finished["image"])
        assert not browser.find_elements("tag name", "button")
        assert browser.find_element("css selector", "table.sortable").is_displayed()
        assert len(order(browser)) == 3 and len(order(browser, 1)) == 4
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.usefixtures("undrawn")
def test_hostile_strings_are_inert(folder: Path, browser: Chrome) -> None:
    results = {**IMAGE, "absent": [ATTACK], "warnings": [f"`{ATTACK}`"],
               "conditions": {**IMAGE["conditions"], ATTACK: ATTACK}}
    write_project("image", results, title=f"</title></style>{ATTACK}")
    make_report()
    show(browser, folder)
    assert browser.title.startswith("</title>")
    assert browser.execute_script("return window.attacked") is None
    assert browser.get_log("browser") == []


def test_policy_holds_where_escaping_would_fail(
    finished: dict[str, Path], folder: Path, browser: Chrome
) -> None:
    page = (finished["points"] / "reports/report.html").read_text(encoding="utf-8")
    path = folder / "attacked.html"
    path.write_text(page.replace("</main>", f"{ATTACK}</main>"), encoding="utf-8")
    browser.get(path.as_uri())
    assert browser.execute_script("return window.attacked") is None
    assert "Content Security Policy" in str(browser.get_log("browser"))
