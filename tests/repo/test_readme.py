"""The README's first screen is true: its code runs, its figures are the committed ones."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def code_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_every_python_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = code_blocks()
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_the_table_shows_the_committed_measurement():
    run = next(
        run
        for run in json.loads((ROOT / "benchmarks/results/cpu-block.json").read_text())
        if run["shape"]["batch"] == 2
    )
    rows = {(row["name"], row["kept"]): row for row in run["rows"]}
    dense = rows["diffusers dense", 1.0]
    for kept in (1.0, 0.8, 0.5, 0.3):
        ours, authors = rows["mod_block", kept], rows["authors' eager", kept]
        cells = [
            f"{kept:.1f}",
            f"{ours['flops'] / dense['flops']:.2f}",
            f"{ours['seconds'] / dense['seconds']:.2f}",
            f"{authors['seconds'] / dense['seconds']:.2f}",
            f"{ours['peak_bytes'] / dense['peak_bytes']:.2f}",
            f"{authors['peak_bytes'] / dense['peak_bytes']:.2f}",
        ]
        assert "| " + " | ".join(cells) + " |" in README
