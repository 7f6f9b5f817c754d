"""The README's first screen is true: its code runs, its figures are the committed ones."""

import re
from pathlib import Path

from diffratio.bench.record import read, select

ROOT = Path(__file__).parents[2]
SHOWN = ("diffusers dense", "mod_block native", "authors' eager")
README = (ROOT / "README.md").read_text()


def code_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_every_python_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = code_blocks()
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def committed_block() -> dict[tuple[str, float], dict]:
    rows = read(*sorted((ROOT / "benchmarks" / "results").glob("*.jsonl")))
    shape = {"capability": None, "level": "block", "dtype": "float32", "batch": 2, "tokens": 1024}
    return {(row["name"], row["kept"]): row for row in select(rows, **shape)}


def test_the_table_shows_the_committed_measurement():
    rows = committed_block()
    dense = rows["diffusers dense", 1.0]
    for kept in (1.0, 0.8, 0.5, 0.3):
        ours, authors = rows["mod_block native", kept], rows["authors' eager", kept]
        cells = [
            f"{kept:.1f}",
            f"{ours['flops'] / dense['flops']:.2f}",
            f"{ours['of_baseline']:.2f}",
            f"{authors['of_baseline']:.2f}",
            f"{ours['peak_bytes'] / dense['peak_bytes']:.2f}",
            f"{authors['peak_bytes'] / dense['peak_bytes']:.2f}",
        ]
        assert "| " + " | ".join(cells) + " |" in README
    [said] = re.findall(r"medians of (\d+) rounds, the middle 60 % of which lie (\d+) to (\d+) %", README)
    shown = [row for (name, kept), row in rows.items() if name in SHOWN and kept in (1.0, 0.8, 0.5, 0.3)]
    spreads = [round(100 * row["spread"]) for row in shown]
    assert {row["rounds"] for row in shown} == {int(said[0])}
    assert (min(spreads), max(spreads)) == (int(said[1]), int(said[2]))


def test_routing_is_the_committed_part_of_a_block():
    rows = committed_block()
    [promised] = re.findall(r"together stay below (\d+) % of a block", README)
    for kept in (1.0, 0.8, 0.5, 0.3):
        steps, block = (
            rows[name, kept]["of_baseline"] for name in ("route + gather + scatter", "mod_block native")
        )
        assert steps / block < int(promised) / 100
