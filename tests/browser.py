"""Chromium without a window, and a demo to look at with it; for tests and for screenshots."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGES = ("gradio", "selenium")
PROGRAMS = ("chromium", "chromedriver")
_SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--force-device-scale-factor=1"),
)
_PATIENCE = 120


def missing() -> str:
    """What of the browser is not installed, or nothing."""
    return ", ".join(
        [name for name in PACKAGES if find_spec(name) is None]
        + [name for name in PROGRAMS if shutil.which(name) is None]
    )


@contextmanager
def chromium(*, dark: bool = False, width: int = 1200, height: int = 1000) -> Iterator[Any]:
    """A selenium driver of a new Chromium with an empty profile."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = shutil.which(PROGRAMS[0]) or ""
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for switch in (
            *_SWITCHES,
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
        ):
            options.add_argument(switch)
        driver = Chrome(options, ChromeService(shutil.which(PROGRAMS[1])))
        driver.set_page_load_timeout(_PATIENCE)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        try:
            yield driver
        finally:
            driver.quit()


class Visitor:
    """A person with the demo's page open."""

    def __init__(self, driver: Any, address: str) -> None:
        self._driver = driver
        driver.get(address)
        self._until(lambda: self._found("#prompt textarea") and self._found("#shown figure"))

    def draw(self, prompt: str) -> None:
        """Type ``prompt`` in place of what is there, and press the button."""
        (box,) = self._found("#prompt textarea")
        box.clear()
        box.send_keys(prompt)
        self._found("#draw")[0].click()

    def drag_slider(self, pixels: int) -> None:
        """Drag the slider to the right, or to the left, and let it go."""
        from selenium.webdriver import ActionChains

        (slider,) = self._found("#share input[type=range]")
        start, least, most = (float(slider.get_attribute(n)) for n in ("value", "min", "max"))
        place = (start - least) / (most - least) - 0.5
        chain = ActionChains(self._driver)
        chain.move_to_element_with_offset(slider, int(place * slider.size["width"]), 0)
        chain.click_and_hold().move_by_offset(pixels, 0).release().perform()

    def press_slider(self, steps: int) -> None:
        """Move the slider by arrow keys."""
        from selenium.webdriver.common.keys import Keys

        key = Keys.ARROW_RIGHT if steps > 0 else Keys.ARROW_LEFT
        for _ in range(abs(steps)):
            self._found("#share input[type=range]")[0].send_keys(key)

    def share(self) -> float:
        """Where the slider stands."""
        return float(self._found("#share input[type=range]")[0].get_attribute("value"))

    def pictures(self) -> list[str]:
        """Addresses of the pictures that are shown; they hold the pictures."""
        return [image.get_attribute("src") for image in self._found("#shown img")]

    def titles(self) -> list[str]:
        return [title.text for title in self._found("#shown h2")]

    def text(self) -> str:
        return self._found("#shown")[0].text

    def wait_for_pictures(self, count: int) -> list[str]:
        """The pictures, as soon as there are ``count`` and nothing is being drawn."""
        self._until(lambda: len(self.pictures()) == count and not self._found("#shown .sd-busy"))
        return self.pictures()

    def wait_for_title(self, title: str) -> None:
        """Wait for a picture called ``title``."""
        self._until(lambda: title in self.titles() and len(self.pictures()) == len(self.titles()))

    def wait_for_trouble(self) -> str:
        """What the page says went wrong."""
        return self._until(lambda: self._found("#shown [role=alert]"))[0].text

    def _found(self, selector: str) -> list[Any]:
        return self._driver.find_elements("css selector", selector)

    def _until(self, what: Callable[[], Any]) -> Any:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        wait = WebDriverWait(
            self._driver, _PATIENCE, ignored_exceptions=[StaleElementReferenceException]
        )
        return wait.until(lambda driver: what())


def requested(driver: Any) -> list[str]:
    """Addresses that pages asked for since the last call, those within a page left out."""
    entries = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    urls = [
        entry["params"]["request"]["url"]
        for entry in entries
        if entry["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in urls if re.match(r"(https?|wss?):", url)]


@contextmanager
def running(*args: str | Path, cwd: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``slimdiff demo`` with ``args`` on a free port, its address and its process."""
    command = [sys.executable, "-m", "slimdiff", "demo", *map(str, args), "--port", "0"]
    with subprocess.Popen(
        command,
        cwd=cwd,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's & ignores it
    ) as process:
        try:
            yield _address(process), process
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()


def _address(process: subprocess.Popen[str]) -> str:
    said = ""
    assert process.stderr is not None
    for line in process.stderr:
        said += line
        if found := re.search(r"The demo is at (http://\S+)", line):
            return found[1]
    raise AssertionError(f"The demo did not start: {said}")
