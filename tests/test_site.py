"""The site: it builds strictly, every link lands, nothing is fetched, and what breaks is seen."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urldefrag

import pytest

import slimdiff
from slimdiff.cli import cli

for needed in ("mkdocs", "material", "mkdocstrings", "latex2mathml", "sybil"):
    pytest.importorskip(needed)

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ELSEWHERE = re.compile(r"(\w+:)?//")


def build(root: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(target)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    made = build(ROOT, target)
    assert made.returncode == 0, made.stderr
    return target


@dataclass
class Page(HTMLParser):
    """What a page of HTML offers (``ids``), leads to (``links``) and needs (``fetched``)."""

    text: str
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif "href" in found and found.get("rel") not in ("canonical", "prev", "next"):
            self.fetched.append(found["href"])
        if "src" in found:
            self.fetched.append(found["src"])


def pages(folder: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}


def broken(folder: Path) -> Iterator[str]:
    """Links within the site, and files of its own, that lead nowhere."""
    every = pages(folder)
    for path, page in every.items():
        for link in page.links + page.fetched:
            if ELSEWHERE.match(link) or link.startswith(("mailto:", "data:")):
                continue
            place, anchor = urldefrag(unquote(link))
            target = (path.parent / place).resolve() if place else path
            if place.startswith("/") or not target.is_file():
                # the page for wrong addresses does not know at what depth it is shown
                if path.name != "404.html":
                    yield f"{path.name}: {link}"
            elif anchor and target in every and anchor not in every[target].ids:
                yield f"{path.name}: {link}"


def test_every_link_lands(site):
    assert len(pages(site)) > 10
    assert not list(broken(site))


def test_a_broken_link_is_seen(tmp_path):
    (tmp_path / "a.html").write_text('<h1 id="here">x</h1><a href="b.html#no">x</a>')
    (tmp_path / "b.html").write_text('<a href="a.html#here">x</a><img src="lost.png">')
    assert sorted(broken(tmp_path)) == ["a.html: b.html#no", "b.html: lost.png"]


def test_nothing_is_fetched_from_elsewhere(site):
    for path, page in pages(site).items():
        assert not [link for link in page.fetched if ELSEWHERE.match(link)], path
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )['\"]?(https?:)?//", path.read_text()), path


def test_formulas_are_mathml(site):
    text = (site / "how.html").read_text()
    assert text.count("<math") > 50
    assert "arithmatex" not in text
    assert "frac{" not in text


def test_an_unknown_formula_is_refused():
    hooks = loaded("hooks")
    page = SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))
    good = hooks.on_page_content(r'<span class="arithmatex">\(a_1 &lt; b\)</span>', page=page)
    assert good.startswith("<math")
    with pytest.raises(Exception, match=r"a\.md: \\nosuch in '\\nosuch x' has no MathML"):
        hooks.on_page_content(r'<span class="arithmatex">\(\nosuch x\)</span>', page=page)


def test_results_appear_once_they_are_there(tmp_path, monkeypatch):
    hooks = loaded("hooks")
    monkeypatch.setattr(hooks, "_RESULTS", tmp_path)
    text = "## Speed\n\n<!-- result: speed -->\n"
    assert "Not measured" in hooks.on_page_markdown(text)
    (tmp_path / "speed.md").write_text("# Title\n\n## Part\n\n| a |\n|---|\n| 1 |\n")
    assert "### Part\n\n| a |" in hooks.on_page_markdown(text)
    assert "Title" not in hooks.on_page_markdown(text)
    assert "<!-- result: speed -->" in (DOCS / "benchmarks.md").read_text()


def loaded(name: str):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_and_command_is_in_the_reference(site):
    names = Page((site / "reference/python.html").read_text()).ids
    assert {f"slimdiff.{name}" for name in slimdiff.__all__} <= names
    commands = Page((site / "reference/commands.html").read_text()).ids
    assert {f"slimdiff-{name}" for name in cli.commands} <= commands


def test_docstrings_speak_markdown(site):
    for path in (site / "reference").glob("*.html"):
        assert not re.search(r":(func|class|mod|data|meth):", path.read_text()), path


@pytest.fixture
def copy(tmp_path):
    """The sources of the site, to be broken."""
    for name in ("mkdocs.yml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(DOCS, tmp_path / "docs")
    (tmp_path / "src").symlink_to(ROOT / "src")
    return tmp_path


def test_strictness_sees_every_kind_of_broken_link(copy):
    with (copy / "docs/faq.md").open("a") as page:
        page.write("\n[a](how.md#nowhere) [b](nowhere.md) ![c](nowhere.png)\n")
        page.write("\n[d](/docs/how.md) [`e`][slimdiff.nowhere]\n")
    made = build(copy, copy / "out")
    assert made.returncode != 0
    for link in (
        "#nowhere",
        "'nowhere.md'",
        "'nowhere.png'",
        "'/docs/how.md'",
        "slimdiff.nowhere",
    ):
        assert link in made.stderr, (link, made.stderr)


def test_figures_are_small_and_come_in_both_shades():
    figures = {path.name for path in (DOCS / "figures").glob("*.svg")}
    shown = set(re.findall(r"figures/([\w-]+\.svg)#only-", (DOCS / "how.md").read_text()))
    assert figures == shown
    assert {name.replace("-light", "-dark") for name in figures if "-light" in name} <= figures
    assert all((DOCS / "figures" / name).stat().st_size < 120_000 for name in figures)


def test_every_block_is_of_a_kind_that_is_run():
    for path in DOCS.rglob("*.md"):
        fences = re.findall(
            r"^ *(?:```|~~~)(.*)\n(?:.*\n)*? *(?:```|~~~)$", path.read_text(), re.M
        )
        assert set(fences) <= {"python", "shell"}, path


BLOCKS = """\
```python
kept = 1
```
```python
assert kept == 2
```
```shell
slimdiff inspect no-such-model
```
```shell
ls
```
<!-- skip: next "needs a GPU" -->
```shell
nvidia-smi
```
```shell
slimdiff \\
  --version  # ends well
```
"""


def test_a_broken_block_fails(tmp_path):
    shutil.copy(DOCS / "conftest.py", tmp_path)
    (tmp_path / "page.md").write_text(BLOCKS)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    # the comment that skips is an example to sybil, and passes
    assert "3 failed, 3 passed, 1 skipped" in ran.stdout, ran.stdout
    for words in (
        "kept == 2",
        "Unknown model 'no-such-model'",
        "'ls' is no command",
        "needs a GPU",
    ):
        assert words in ran.stdout, words
