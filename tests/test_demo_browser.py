"""The demo as a person uses it, in a real Chromium: a prompt, two pictures, a third."""

from __future__ import annotations

import re
import signal
from urllib.parse import urlsplit

import browser
import pytest
from test_cli import slimmed

pytestmark = pytest.mark.skipif(
    bool(browser.missing()), reason=f"not installed: {browser.missing()}"
)

EVIL = "<img src=x onerror=document.title='pwned'> {{ 7 * 7 }} ${7 * 7}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return slimmed(tmp_path_factory.mktemp("browser"), "0.5")


def test_a_prompt_two_pictures_the_slider_a_third(place):
    with (
        browser.running("model", "slim", "--steps", "2", "--device", "cpu", cwd=place) as demo,
        browser.chromium() as driver,
    ):
        address, process = demo
        visitor = browser.Visitor(driver, address)
        assert visitor.pictures() == []
        visitor.draw(EVIL)
        first = visitor.wait_for_pictures(2)
        assert len(set(first)) == 2
        assert visitor.titles() == ["Dense", "Slim, 50 % of the pool"]
        assert len(re.findall(r"\d\.\d\d s", visitor.text())) == 2

        visitor.drag_slider(150)
        second = visitor.wait_for_pictures(3)
        assert second[:2] == first
        assert second[2] not in first
        share = visitor.share()
        assert share > 0.5
        assert visitor.titles()[2] == f"{100 * share:.0f} % of the pool"

        visitor.press_slider(-1)  # by the keyboard
        visitor.wait_for_title(f"{100 * (share - 0.05):.0f} % of the pool")
        assert visitor.share() == pytest.approx(share - 0.05)

        visitor.draw(" ")
        assert "There is no prompt yet. Type one." in visitor.wait_for_trouble()
        assert driver.title == "slimdiff demo"
        hosts = {urlsplit(url).netloc for url in browser.requested(driver)}
        assert hosts == {urlsplit(address).netloc}
        complaints = [e for e in driver.get_log("browser") if e["level"] == "SEVERE"]
        assert complaints == []

        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert said.endswith("Interrupted.\n")
        assert "Traceback" not in said
