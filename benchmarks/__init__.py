"""Measurements behind the figures the project states. Run from the repository root."""
