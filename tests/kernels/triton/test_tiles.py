"""The table of tiles: what is in it, and which entry another shape takes."""

import json
import re
from dataclasses import replace

import pytest
import torch

from diffratio_kernels._triton import tiles

ON = re.compile(r".+, torch \d.+, Triton \d.+, commit [0-9a-f]{7,}, \d{4}-\d\d-\d\d")
KERNELS = ("linear_gelu", "linear_gelu_backward", "linear_gate_residual", "linear_scatter")


def test_every_entry_says_where_it_comes_from():
    table = json.loads(tiles.TABLE.read_text())
    entries = table["products"] + table["attention"]
    assert len(entries) > 20
    for entry in entries + table["ratios"]:
        assert entry["source"] in ("predicted", "measured")
        measured = entry["source"] == "measured"
        assert bool(ON.fullmatch(entry.get("on", ""))) == measured == ("on" in entry)


def test_every_kernel_has_entries_once_for_both_architectures():
    keys = [(e.kernel, e.architecture, e.columns, e.rows, e.inner) for e in tiles.PRODUCT_TILES]
    assert len(set(keys)) == len(keys)
    assert {key[:2] for key in keys} == {(kernel, a) for kernel in KERNELS for a in (80, 90)}
    for entry in tiles.PRODUCT_TILES:
        *blocks, group, warps, stages = entry.tile
        assert all(block in (16, 32, 64, 128, 256) for block in blocks) and group >= 1
        assert warps in (4, 8) and 1 <= stages <= 5 and entry.of_library > 0


@pytest.fixture
def table(monkeypatch):
    def entry(rows, columns, inner, tile):
        first = replace(tiles.PRODUCT_TILES[0], kernel="product", architecture=90, tile=tile)
        return replace(first, rows=rows, columns=columns, inner=inner)

    made = [entry(1000, 1152, 1152, (1,)), entry(8000, 1152, 1152, (2,)), entry(2000, 1152, 4608, (3,))]
    monkeypatch.setattr(tiles, "PRODUCT_TILES", made)
    tiles.nearest.cache_clear()
    yield
    tiles.nearest.cache_clear()


@pytest.mark.parametrize(
    ("rows", "columns", "inner", "tile"),
    [
        (1000, 1152, 1152, 1), (0, 1152, 1152, 1), (2828, 1152, 1152, 1), (2829, 1152, 1152, 2),
        (10**6, 1152, 1152, 2), (8000, 1152, 4608, 3), (8000, 384, 1536, 2), (8000, 3072, 3072, 3),
    ],
)  # fmt: skip
def test_the_nearest_weight_counts_first_then_the_nearest_number_of_rows(rows, columns, inner, tile, table):
    assert tiles.nearest("product", 90, columns, rows, inner).tile == (tile,)


def test_counts_of_rows_that_differ_from_call_to_call_fill_no_memory():
    assert tiles.nearest.cache_parameters()["maxsize"] is not None


def test_products_in_fp32_take_small_tiles():
    rows = torch.empty(33, 40)
    assert tiles.product_tiles("linear_gelu", rows, 72)["BLOCK_M"] == tiles.PRODUCT_FP32[0]
    assert tiles.product_tiles("linear_gelu", rows.half(), 72)["BLOCK_M"] > tiles.PRODUCT_FP32[0]


def test_blocks_of_keys_depend_on_the_width_of_a_head_only():
    """They decide the order of sums, so a sample's bits: blocks of queries do not."""
    for kernel, architectures in tiles.ATTENTION_TILES.items():
        for architecture, widths in architectures.items():
            for held in widths:
                _, *expected = tiles.attention_tile(kernel, architecture, held)
                for rows in (1, 64, 65, 410, 717, 4096):
                    for sequences in (1, 16, 256):
                        _, keys, _, stages = tiles.attention_tile(
                            kernel, architecture, held, rows, rows, sequences
                        )
                        assert (keys, stages) == (expected[0], expected[2])


@pytest.mark.parametrize(
    ("rows", "keys", "sequences", "queries"),
    [
        (1024, 1024, 256, 128), (717, 717, 256, 128), (410, 410, 256, 64), (308, 308, 256, 64),
        (512, 512, 16, 64), (8192, 8192, 2, 64), (1024, 300, 256, 64),
    ],
)  # fmt: skip
def test_few_queries_take_half_a_tile(rows, keys, sequences, queries):
    block, _, warps, _ = tiles.attention_tile("attention_fwd", 90, 80, rows, keys, sequences)
    assert (block, warps) == (queries, queries // 16)
