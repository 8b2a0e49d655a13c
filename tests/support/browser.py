"""A real browser for tests: headless Chromium, from Debian's packages."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1200,900",
)


def install() -> str:
    """Make sure that Chromium is there; returns why it is not, or nothing."""
    if CHROMIUM.exists() and DRIVER.exists():
        return ""
    if os.geteuid() or not shutil.which("apt-get"):
        return "no chromium and chromedriver in /usr/bin: apt-get install chromium chromium-driver"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends",
                                 "chromium", "chromium-driver"]):
        done = subprocess.run(["apt-get", "-q", *command], env=environment, timeout=600,
                              capture_output=True, text=True, check=False)
        if done.returncode:
            return f"apt-get {command[0]} failed: {done.stderr.strip()[-300:]}"
    return ""


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A browser with a profile of its own, for all tests of the session."""
    problem = install()
    if problem:
        pytest.skip(problem)
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(executable_path=str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


def emulate(driver: Chrome, width: int, height: int, dark: bool) -> None:
    """Give the page a screen of this size in CSS pixels, and the reader's choice of colours."""
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [
        {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})
