"""Published configurations, counted without weights, and what the page says of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.models.__main__ import row
from benchmarks.models.figures import figures
from benchmarks.models.full_size import run
from benchmarks.models.published import PUBLISHED

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
GMAC = {  # counted apart, one sample
    "SD 1.5": 402,
    "SD 2.1": 1074,
    "SDXL": 3381,
    "DiT-XL/2": 119,
    "PixArt-Sigma": 3317,
    "SD3-medium": 4452,
    "FLUX.1-dev": 37192,
    "Wan2.1-14B": 839185,
}


def cells(name):
    (line,) = [x for x in PAGE.read_text().splitlines() if x.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.split("|")[1:-1]]


@pytest.mark.parametrize(
    ("name", "parameters", "pool"), [("SD 1.5", 859.5, 242.3), ("DiT-XL/2", 749.8, 446.2)]
)
def test_a_published_model_has_the_size_and_pool_it_should_have(name, parameters, pool):
    found = figures(PUBLISHED[name])
    assert found.parameters / 1e6 == pytest.approx(parameters, abs=0.05)
    assert found.pool / 1e6 == pytest.approx(pool, abs=0.05)
    assert found.macs / 1e9 == pytest.approx(GMAC[name], rel=0.02)
    assert found.least < found.slim_parameters <= found.parameters - 0.4 * found.pool
    assert row(name, PUBLISHED[name].draws, found) in PAGE.read_text().splitlines()


@pytest.mark.parametrize("name", GMAC)
def test_the_page_agrees_with_multiply_adds_counted_apart(name):
    assert float(cells(name)[6].replace(",", "")) == pytest.approx(GMAC[name], rel=0.02)


def test_the_full_size_run_does_every_phase(tmp_path):
    """On a small U-Net here; its peak and minutes are printed by the command."""
    config = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    found = run(tmp_path, config, 64, "-1000")
    assert set(found["phases"]) == {"build", "calibrate", "plan", "apply", "save", "load"}
    assert set(found["calibrate_minutes"]) == {"sampling", "decomposition", "gains"}
    assert found["parameters"]["removed"] >= 1000
    assert all(phase["peak_mib"] > 0 for phase in found["phases"].values())


def test_the_page_has_every_published_model():
    assert all(cells(name) for name in PUBLISHED)
