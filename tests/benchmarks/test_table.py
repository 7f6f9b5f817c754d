"""The table of `diffratio bench`, for the eye."""

import io

from rich.console import Console

from benchmarks.harness.table import table

ROW = {
    "suite": "block", "subject": "PixArt block", "dtype": "bfloat16", "batch": 2, "tokens": 64, "kept": 1.0,
    "name": "dense", "mode": "graph", "cache": "cold", "flops": 100, "seconds": 2.0, "of_baseline": 1.0,
    "peak_bytes": 2**20,
}  # fmt: skip
HALF = {"name": "mod_block", "kept": 0.5, "flops": 50, "seconds": 1.25, "of_baseline": 0.625}


def shown(rows, gpu):
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(table(rows, gpu))
    return console.export_text()


def test_the_table_shows_how_much_of_the_pruned_work_became_time():
    rows = [ROW, ROW | HALF, {"refused": "no kernel", **ROW, "name": "other"}]
    text = shown(rows, gpu=True)
    assert "block PixArt block B=2 N=64 bfloat16" in text and "other: no kernel" in text
    [line] = [line for line in text.splitlines() if "mod_block" in line]
    cells = [cell.strip() for cell in line.strip("│ \n").split("│")]
    assert cells == ["mod_block", "0.5", "graph, cold", "1250", "0.625", "0.500", "0.80", "0.0", "", "1.0"]


def test_a_processor_shows_ratios_only():
    text = shown([ROW, ROW | HALF], gpu=False)
    assert "ms" not in text and "1250" not in text and "0.625" in text
