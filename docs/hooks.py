"""What mkdocs does on top of its plugins: mathematics as MathML, results where they are there."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

_MATH = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.S
)
_RESULT = re.compile(r"<!-- result: (?P<name>[\w-]+) -->")
_RESULTS = Path(__file__).parent / "results"


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Replace TeX by MathML, which browsers draw without a script."""
    return _MATH.sub(lambda found: _mathml(found, page.file.src_uri), content)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put a benchmark's table, where ``docs/results`` holds it, in place of its comment."""
    return _RESULT.sub(lambda found: _result(_RESULTS / f"{found['name']}.md"), markdown)


def _mathml(found: re.Match[str], page: str) -> str:
    tex = html.unescape(found["tex"])
    made = convert(tex, display="block" if found["tag"] == "div" else "inline")
    if unknown := re.search(r"\\\w+", html.unescape(made)):
        raise PluginError(f"{page}: {unknown[0]} in '{tex.strip()}' has no MathML.")
    return made


def _result(path: Path) -> str:
    """The table under headings of level three; its own title goes."""
    if not path.is_file():
        return "*Not measured on this version yet: the command above makes the table.*"
    text = re.sub(r"\A# .*\n", "", path.read_text(encoding="utf-8"))
    return re.sub(r"^#+", "###", text, flags=re.M)
