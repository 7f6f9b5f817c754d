"""The tile-and-wave model: counted waves, floors, and who wins on known shapes."""

from dataclasses import replace

import pytest

from diffratio.plan import DEVICES
from tools.tune.waves import (
    MULTIPROCESSORS,
    TILES,
    Tile,
    best_tile,
    product_seconds,
    shared_memory_share,
    tile_seconds,
)

A100, H200 = DEVICES["a100"], DEVICES["h200"]
WIDE = Tile(128, 192, 0.95)


def test_waves_are_counted_whole():
    # 8192 rows and 1152 columns: 64 x 6 tiles over 132 multiprocessors
    assert tile_seconds(8192, 1152, 1152, H200, WIDE).waves == 3
    assert tile_seconds(8193, 1152, 1152, H200, WIDE).waves == 3
    assert tile_seconds(132 * 128, 192, 1152, H200, WIDE).waves == 1
    assert tile_seconds(132 * 128 + 1, 192, 1152, H200, WIDE).waves == 2
    assert tile_seconds(8192, 1152, 1152, H200, WIDE, splits=2).waves == 6


def test_a_full_wave_reaches_the_efficiency_of_its_tile_or_what_shared_memory_leaves():
    def reached(device):
        free = replace(device, launch_seconds=1e-12)
        return tile_seconds(MULTIPROCESSORS[device.name] * 128, 192 * 10, 8192, free, WIDE)

    assert reached(H200).waves == reached(A100).waves == 10
    assert reached(A100).efficiency == pytest.approx(0.95, abs=1e-6)
    assert reached(H200).efficiency == pytest.approx(0.923, abs=1e-3)


@pytest.mark.parametrize(
    ("tile", "share"),
    [
        ((64, 64), 0.50), ((128, 64), 0.57), ((64, 128), 0.67), ((128, 128), 0.80), ((256, 128), 0.89),
        ((128, 256), 1.0), ((256, 256), 1.0),
    ],
)  # fmt: skip
def test_shared_memory_bounds_small_tiles_of_sm_90(tile, share):
    """By hand for 64 x 64, in steps of 16: 2 * 64 * 64 * 16 FLOPs take 32 cycles, 4 KiB written and 4 read
    take 64."""
    for name in ("h100", "h200"):
        assert shared_memory_share(Tile(*tile, 0.95), DEVICES[name]) == pytest.approx(share, abs=0.005)
    assert shared_memory_share(Tile(*tile, 0.95), A100) == 1.0


def test_one_more_row_than_a_wave_costs_a_wave():
    full, more = (tile_seconds(rows, 1152, 8192, H200, WIDE).seconds for rows in (22 * 128, 22 * 128 + 1))
    assert more - H200.launch_seconds == pytest.approx(2 * (full - H200.launch_seconds))


def test_never_faster_than_its_bytes():
    seconds = product_seconds(1, 1152, 4608, H200)
    assert seconds >= 2 * 1152 * 4608 / H200.bandwidth + H200.launch_seconds
    slow = replace(H200, bandwidth=H200.bandwidth / 1000)
    assert product_seconds(8192, 1152, 1152, slow) > 100 * product_seconds(8192, 1152, 1152, H200)


def test_splitting_helps_a_deep_product_with_few_tiles_only():
    assert best_tile(256, 1152, 65536, H200).splits > 1
    assert best_tile(16384, 4608, 1152, H200).splits == 1


def test_the_best_tile_is_the_best_of_those_given():
    best = best_tile(3072, 1152, 1152, H200)
    assert best.seconds == min(tile_seconds(3072, 1152, 1152, H200, tile).seconds for tile in TILES)
    assert best_tile(3072, 1152, 1152, H200, tiles=(WIDE,)).tile is WIDE


@pytest.mark.parametrize("name", ["rows", "columns", "inner", "splits"])
def test_what_is_not_positive_is_named(name):
    sizes = {"rows": 8, "columns": 8, "inner": 8, "splits": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name}: 0 must be positive"):
        tile_seconds(device=H200, tile=WIDE, **sizes)


def test_a_device_without_a_rate_is_refused():
    with pytest.raises(ValueError, match="bandwidth: 0 must be positive"):
        replace(H200, bandwidth=0)
