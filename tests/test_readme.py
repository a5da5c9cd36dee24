"""The README keeps its promises: two commands, one line each, and Python that parses."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(section: str) -> list[str]:
    text = README.split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```\w*\n(.*?)```", text, flags=re.S)


def test_start_has_two_one_line_commands():
    first, second = (block.strip() for block in blocks("Start"))
    assert "\n" not in first
    assert "\n" not in second
    assert first.endswith("-o emoji-slim")
    assert second.endswith("pytest")


def test_the_python_example_parses_and_uses_public_names():
    import slimdiff

    (code,) = blocks("In Python")
    names = {
        node.attr
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "slimdiff"
    }
    assert names
    assert names <= set(slimdiff.__all__)


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_no_placeholder_is_left():
    assert not re.search(r"^[A-Z]{4,}$", README, flags=re.M)
