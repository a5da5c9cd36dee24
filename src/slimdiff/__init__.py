"""Slim diffusion models without training.

pipeline -> ``calibrate`` -> ``Statistics`` -> ``allocate`` -> ``Plan`` -> ``compress_`` -> slim
pipeline -> ``compare`` -> ``Report``. ``slim`` is all of it; ``save`` and ``load`` are the ends.
"""

from .adapters import register as _register_adapters
from .allocation import allocate
from .budget import Budget
from .calibration import calibrate, finish
from .compression import compress_
from .errors import SlimdiffError
from .latency import LatencyTable
from .loading import register as _register_loader
from .merging import merge
from .plan import Plan
from .profiling import measure_latency
from .recipe import slim
from .report import Report, compare
from .sampling import Sampling
from .statistics import Statistics
from .store import load, save

__all__ = [
    "Budget",
    "LatencyTable",
    "Plan",
    "Report",
    "Sampling",
    "SlimdiffError",
    "Statistics",
    "allocate",
    "calibrate",
    "compare",
    "compress_",
    "finish",
    "load",
    "measure_latency",
    "merge",
    "save",
    "slim",
]

__version__ = "0.1.0"

_register_loader()
_register_adapters()
