"""``python -m slimdiff`` is the command."""

from .cli import main

main()
