"""From emoji drawings to a small text-to-image pipeline and its judge: see README.md."""
