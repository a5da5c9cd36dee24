"""Makes the repository's `benchmarks` and `training` packages importable from the tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
