"""Takes the pictures of the documentation: the demo and the report of a slim folder.

    python tests/screenshots.py emoji emoji-slim -o shots

writes demo-light.png, demo-dark.png, report-light.png and report-dark.png, each small enough to
keep (the light ones are docs/demo.png and docs/report.png), and report-whole-*.png to look at.
"""

from __future__ import annotations

import argparse
import base64
import io
from pathlib import Path
from typing import Any

from browser import Visitor, chromium, running
from PIL import Image

WIDTH, HEIGHT = 1160, 1040
PROMPT = "red apple, noto style emoji"
PUSH = -250
SCHEMES = {"light": False, "dark": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dense")
    parser.add_argument("slim", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--steps", default="20")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    options = ("--steps", args.steps, "--seed", "1")
    with running(args.dense, args.slim, *options, cwd=Path.cwd()) as (address, _):
        for name, dark in SCHEMES.items():
            with chromium(dark=dark, width=WIDTH, height=HEIGHT) as driver:
                demo(driver, address, args.prompt)
                save(driver, args.output / f"demo-{name}.png", whole=True)
    page = (args.slim / "report" / "report.html").resolve()
    for name, dark in SCHEMES.items():
        with chromium(dark=dark, width=WIDTH, height=HEIGHT) as driver:
            driver.get(page.as_uri())
            save(driver, args.output / f"report-{name}.png")
            save(driver, args.output / f"report-whole-{name}.png", whole=True)


def demo(driver: Any, address: str, prompt: str) -> None:
    """Draw ``prompt`` and move the slider."""
    visitor = Visitor(driver, address)
    visitor.draw(prompt)
    visitor.wait_for_pictures(2)
    visitor.drag_slider(PUSH)
    visitor.wait_for_pictures(3)


def save(driver: Any, path: Path, *, whole: bool = False) -> None:
    """Write what the window shows, or the ``whole`` page, in 256 colours."""
    options: dict[str, Any] = {"format": "png"}
    if whole:
        size = driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        options |= {"captureBeyondViewport": True, "clip": clip}
    shot = base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"])
    with Image.open(io.BytesIO(shot)) as image:
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(path, optimize=True)


if __name__ == "__main__":
    main()
