"""A page to type prompts into: the dense model, the slim one, and any other budget beside them.

``studio`` draws and knows nothing of pages; ``page`` shows what it draws; ``server`` hands the
page out, to this machine only unless told otherwise.
"""

from __future__ import annotations

from importlib.util import find_spec

from ..errors import SlimdiffError

__all__ = ["require_gradio"]


def require_gradio() -> None:
    """Raise SlimdiffError if pages cannot be made."""
    if find_spec("gradio") is None:
        raise SlimdiffError(
            "The demo needs gradio, which is not installed. Run pip install 'slimdiff[demo]'."
        )
