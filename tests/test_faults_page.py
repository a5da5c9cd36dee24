"""docs/faults.md: every fault happens here, and the page says what the program says."""

from __future__ import annotations

import shutil

import pytest
from faults import FAULTS, met, prepared
from faults.page import PAGE, page, row

TEXT = PAGE.read_text(encoding="utf-8")
EVERY = [fault for faults in FAULTS.values() for fault in faults]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("fault", EVERY, ids=lambda fault: fault.what)
def test_the_page_says_what_the_program_says(fault, whole, tmp_path):
    root = shutil.copytree(whole, tmp_path / "copy")
    told = met(fault, root)
    assert told.code == fault.code, told.said
    assert told.left == fault.leaves, told.said
    assert "Traceback" not in told.said
    assert len(told.message.replace("…", "")) > 20
    assert row(fault, told) in TEXT.splitlines()


def test_the_page_has_no_other_rows_or_words():
    def shown(fault):
        start = f"| {fault.what}<br>`slimdiff {fault.command}` | "
        return next((line for line in TEXT.splitlines() if line.startswith(start)), start)

    assert page(shown) == TEXT
