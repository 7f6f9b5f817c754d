"""The README's first screen is true: its code runs, its figures are the committed ones."""

import re
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from diffratio.evaluation.results import read, select

ROOT = Path(__file__).parents[2]
SHOWN = ("diffusers dense", "mod_block cpu", "authors' eager")
README = (ROOT / "README.md").read_text()


def code_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_every_python_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = code_blocks()
    assert blocks
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for block in blocks:
            exec(compile(block, "README.md", "exec"), {})


def test_the_first_screen_says_that_routers_are_trained_first():
    first = README.partition("**Promises**")[0]
    road = [first.index(word) for word in ("trained first", "diffratio train", "load_diffratio")]
    assert road == sorted(road)
    found = {}
    exec(code_blocks()[0].replace("remove_diffratio(model)", "rows = summary(model)"), found)
    assert not any(row.untrained_router for row in found["rows"])


def block_with(text: str) -> str:
    [found] = [block for block in code_blocks() if text in block]
    return found


def replaced(code: str, old: str, new: str) -> str:
    assert code.count(old) == 1
    return code.replace(old, new)


def dense_block(x, modulation, qkv, out, fc1, fc2, heads):
    """The block without a router, in plain PyTorch: its output, and what the MLP branch adds to it."""
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unsqueeze(2).unbind(1)
    width = x.shape[-1:]
    normed = F.layer_norm(x, width, eps=1e-6) * (1 + scale1) + shift1
    query, key, value = (normed @ qkv.T).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    hidden = x + gate1 * (attended @ out.T)
    normed = F.layer_norm(hidden, width, eps=1e-6) * (1 + scale2) + shift2
    branch = gate2 * (F.gelu(normed @ fc1.T, approximate="tanh") @ fc2.T)
    return hidden + branch, branch


@pytest.mark.parametrize(("scale", "missing"), [("2.0", (0.0, 0.02)), ("1.0", (0.48, 0.52))])
def test_the_operator_starts_as_the_dense_block_with_the_scale_it_is_shown_with(scale, missing):
    """Where every token is kept, the part of the MLP branch that is missing; 1.0 is the control."""
    torch.manual_seed(0)
    code = replaced(block_with("diffratio_kernels.mod_block"), "x, router, 180,", "x, router, N,")
    found = {}
    exec(replaced(code, ", score_scale=2.0\n", f", score_scale={scale}\n"), found)
    names = ("x", "modulation", "qkv", "out", "fc1", "fc2", "H")
    dense, branch = dense_block(*(found[name] for name in names))
    assert missing[0] <= ((found["y"] - dense).norm() / branch.norm()).item() <= missing[1]


@pytest.fixture
def own_loop(tmp_path, monkeypatch):
    """Runs the README's own training loop for more steps; returns the table that it learned."""
    monkeypatch.chdir(tmp_path)

    def run(steps: int, ratio_rate: str = "controller.learning_rate") -> list[list[int]]:
        code = replaced(block_with("parameter_groups"), "steps = 3 ", f"steps = {steps} ")
        code = replaced(code, "_rate=controller.learning_rate", f"_rate={ratio_rate}")
        torch.manual_seed(0)
        found = {}
        exec(compile(code, "README.md", "exec"), found)
        return found["kept_tenths"]

    return run


def test_the_readmes_own_loop_learns_where_to_compress(own_loop):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        table = own_loop(40)
    print("kept tenths [layers][regions], the cleanest region first:", *table, sep="\n")
    assert sum(map(sum, table)) == 7 * 6 * 4, "30 % of the tokens are skipped"
    clean, *others = (sum(column) / len(column) for column in zip(*table, strict=True))
    assert clean > max(others) + 1, "most is kept where an image is nearly finished"
    assert sum(table[-1]) > sum(table[2]) + 4, "the last layer keeps more than one in the middle"


def test_the_readmes_loop_with_one_rate_for_all_learns_nothing_and_says_so(own_loop):
    with pytest.warns(UserWarning, match="uniform MoD"):
        table = own_loop(8, ratio_rate="3e-4")
    assert {tenths for row in table for tenths in row} == {7}


def committed_block() -> dict[tuple[str, float], dict]:
    rows = read(*sorted((ROOT / "benchmarks" / "results").glob("*.jsonl")))
    shape = {"capability": None, "suite": "block", "dtype": "float32", "batch": 2, "tokens": 1024}
    return {(row["name"], row["kept"]): row for row in select(rows, **shape)}


def test_the_table_shows_the_committed_measurement():
    rows = committed_block()
    dense = rows["diffusers dense", 1.0]
    for kept in (1.0, 0.8, 0.5, 0.3):
        ours, authors = rows["mod_block cpu", kept], rows["authors' eager", kept]
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
            rows[name, kept]["of_baseline"] for name in ("route + gather + scatter", "mod_block cpu")
        )
        assert steps / block < int(promised) / 100
