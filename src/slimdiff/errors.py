"""The one exception users meet: what went wrong, where, and what to do about it."""


class SlimdiffError(ValueError):
    """Bad input or an impossible request; its text names place, expected, got and remedy."""
