"""The page of `kdm play` in a real browser: what is touched shows, and nothing calls outside."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.browser import browser, emulate
from tests.support.play import NFE, make_run
from tests.support.project import environment

__all__ = ["browser"]
PATIENCE_S = 60


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the page, served by the command itself, which ends well when it is interrupted."""
    folder = tmp_path_factory.mktemp("run")
    make_run(folder)
    code = "from pipeline.kdm.cli import app; app()"
    command = subprocess.Popen(
        [sys.executable, "-c", code, "play", "--port", "0", "--n", "4", "--device", "cpu"],
        cwd=folder, env=environment(GRADIO_SHARE="true"), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert command.stdout is not None
    try:
        line = command.stdout.readline()
        assert line.startswith("levels, mine: http://127.0.0.1:"), line + command.stdout.read()
        yield line.split()[2]
    finally:
        command.send_signal(signal.SIGINT)
        rest, _ = command.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in rest and "gradio.live" not in rest


@pytest.fixture
def page(address: str, browser: Chrome) -> Chrome:
    emulate(browser, 1280, 900, dark=False)
    browser.get(address)
    until(browser, lambda: picture(browser) and picture(browser, "teacher"))
    return browser


def until(browser: Chrome, holds: Any) -> None:
    WebDriverWait(browser, PATIENCE_S, poll_frequency=0.1).until(lambda _: holds())


def picture(browser: Chrome, of: str = "student") -> str:
    """The address of a picture, which holds all of it; empty if there is none."""
    return str(browser.execute_script(
        "return document.querySelector(arguments[0])?.src ?? ''", f"#{of} img"))


def click(browser: Chrome, selector: str) -> None:
    browser.find_element("css selector", selector).click()


def slide(browser: Chrome, name: str, value: float) -> None:
    browser.execute_script("""
        const slider = document.querySelector(arguments[0] + " input[type=range]");
        slider.value = arguments[1];
        slider.dispatchEvent(new Event("input", {bubbles: true}));
        """, f"#{name}", value)


def changes(browser: Chrome, act: Any, teacher: bool) -> None:
    """Make sure that another picture of the student comes, and of the teacher if it is asked."""
    before = picture(browser), picture(browser, "teacher")
    act()
    until(browser, lambda: picture(browser) not in ("", before[0]))
    if teacher:
        until(browser, lambda: picture(browser, "teacher") not in ("", before[1]))
    else:
        assert picture(browser, "teacher") == before[1]


def test_what_is_touched_shows(page: Chrome) -> None:
    changes(page, lambda: click(page, "#label label:nth-of-type(3)"), teacher=True)
    changes(page, lambda: click(page, "#another"), teacher=True)
    assert page.find_element("css selector", "#seed input").get_property("value") == "1"
    changes(page, lambda: slide(page, "weight", 0.5), teacher=True)
    clock, beside = (page.find_element("css selector", f"#{of} figcaption").text
                     for of in ("student", "teacher"))
    assert "1 evaluation" in clock and "ms" in clock
    assert f"{NFE} evaluations" in beside and "times as long" in beside
    # Modes and states are the student's own.
    changes(page, lambda: click(page, "#fate label:nth-of-type(2)"), teacher=False)
    changes(page, lambda: slide(page, "from", 0.1), teacher=False)
    changes(page, lambda: slide(page, "position", 0.9), teacher=False)
    assert page.get_log("browser") == []


def test_a_student_without_modes_has_no_sliders_for_them(page: Chrome) -> None:
    assert page.find_element("css selector", "#fate").is_displayed()
    changes(page, lambda: click(page, "#name label:nth-of-type(2)"), teacher=False)
    until(page, lambda: not any(one.is_displayed() for one in page.find_elements(
        "css selector", "#fate, #position")))
    assert "mine" in page.find_element("css selector", "#student figcaption").text
    assert page.get_log("browser") == []


def test_what_is_wrong_is_said_in_place_of_the_picture(page: Chrome) -> None:
    click(page, "#fate label:nth-of-type(3)")
    slide(page, "to", 0.2)
    until(page, lambda: page.find_elements("css selector", "#student .problem"))
    assert "From must be below To" in page.find_element("css selector", "#student .problem").text
    slide(page, "to", 1)
    until(page, lambda: picture(page))


def test_page_fits_and_asks_nobody_else(page: Chrome, address: str) -> None:
    for width, dark in ((1280, False), (390, False), (390, True), (1280, True)):
        emulate(page, width, 844, dark)
        page.get(address)
        until(page, lambda: picture(page) and picture(page, "teacher"))
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        boxes = [page.find_element("css selector", f"#{of} img").rect
                 for of in ("student", "teacher")]
        assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["y"] + boxes[0]["height"] < 844
        assert boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]
    asked = page.execute_script(
        "return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert asked and all(name.startswith(address) for name in asked)
    assert page.get_log("browser") == []


def test_served_on_loopback_with_a_policy(address: str) -> None:
    answer = httpx.get(address, trust_env=False)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "fonts.googleapis" not in answer.text and "cdnjs" not in answer.text
