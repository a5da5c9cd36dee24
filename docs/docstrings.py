"""Docstrings speak Sphinx's language in two places; this turns both into Markdown's."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|mod|data|meth):`~?([\w.]+)`")
_LINK = r'<autoref identifier="\1" optional><code>\1</code></autoref>'
_LITERAL = re.compile(r"::(?=\n\n +\S)")


class Sphinx(griffe.Extension):
    """A role such as ``func`` becomes a link to what the site has, ``::`` before code a colon."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _LITERAL.sub(":", _ROLE.sub(_LINK, obj.docstring.value))
