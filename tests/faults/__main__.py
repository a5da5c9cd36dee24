"""``PYTHONPATH=src:tests python -m faults``: writes docs/faults.md."""

import shutil
import tempfile
from pathlib import Path

import torch

from slimdiff.files import write_text

from . import Fault, met, prepared
from .page import PAGE, page, row

torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as name:
    (whole := Path(name) / "whole").mkdir()
    prepared(whole)

    def happened(fault: Fault) -> str:
        shutil.copytree(whole, root := Path(name) / "copy")
        try:
            return row(fault, met(fault, root))
        finally:
            shutil.rmtree(root)

    write_text(PAGE, page(happened))
