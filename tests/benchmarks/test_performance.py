"""docs/performance.md: every row is in it, promises are held against what was measured. Rows are made up."""

import json

import pytest

from benchmarks.performance import render, targets, write
from diffratio.evaluation.results import Roof, append, roof_of
from diffratio.plots.results import draw_results

FACTS = {
    "device": "NVIDIA H200", "capability": "9.0", "threads": 8, "date": "2026-01-01", "commit": "0123abc",
    "driver": "580", "cuda": "13.0", "versions": {"torch": "2.11", "diffusers": None},
}  # fmt: skip
SHAPE = {"dtype": "bfloat16", "batch": 16, "tokens": 1024, "width": 1152, "heads": 16, "text": 300}
COLD = {"mode": "graph", "cache": "cold", "spread": 0.01, "peak_bytes": 2**20, "kept": 1.0}


def block(name, kept, of_baseline, flops=100, **more):
    return {
        "suite": "block", "subject": "PixArt block", **SHAPE, **COLD, "name": name, "kept": kept,
        "of_baseline": of_baseline, "seconds": of_baseline / 1e3, "flops": flops, **more,
    }  # fmt: skip


def rows():
    return [
        block("plain torch dense", 1.0, 1.0),
        block("dense, compiled", 1.0, 0.8),
        block("dense, compiled, cudnn", 1.0, 0.7),
        {**block("dense, compiled, flash", 1.0, 1.0), "refused": "no kernel | none"},
        block("mod_block cuda", 1.0, 0.6),
        block("mod_block cuda", 0.5, 0.3, flops=48),
        block("mod_block triton", 0.5, 0.1, flops=48),
        block("mod_block cuda", 0.5, 0.9, mode="eager"),
        block("authors' eager", 0.5, 0.6, flops=48),
        block("route + gather + scatter", 0.5, 0.039, flops=0),
        block("adaLN + gate + residual", 0.5, 0.03, flops=0),
    ]


def peak(subject, **work):
    return {"suite": "peak", "subject": subject, "dtype": "bfloat16", **COLD, "name": "torch", "flops": 0,
            "of_baseline": 1.0, "seconds": 1.0, **work}  # fmt: skip


def operator(subject, seconds, flops, moved):
    return {"suite": "operator", "subject": subject, **SHAPE, "keep": 512, **COLD, "kept": 0.5,
            "name": "triton", "of_baseline": 1.0, "seconds": seconds, "flops": flops,
            "bytes": moved}  # fmt: skip


def results(folder):
    path = folder / "nvidia-h200.jsonl"
    append(path, FACTS, rows())
    for subject, work in {
        "matmul": {"flops": 800e12},
        "copy": {"bytes": 4e12},
        "launch": {"seconds": 1e-6},
    }.items():
        append(path, FACTS, [peak(subject, **work)])
    append(path, FACTS, [operator("adaln", 20e-6, 1e6, 40e6)])
    append(path, FACTS, [operator("linear out", 50e-6, 2 * 8192 * 1152**2, 4e7)])
    return path


def test_promises_are_held_against_graphs_with_a_cold_cache():
    found = {t.what: t for t in targets.targets(rows(), Roof(1e6, 1e6))}
    half = found["latency at keep 0.5 / ours at keep 1"]
    assert half.measured == pytest.approx(0.5) and half.holds and half.must == 0.51
    realised = found["E at keep 0.5: FLOP ratio / latency ratio"]
    assert realised.measured == pytest.approx(0.96) and realised.holds
    assert found["torch.compile dense / our dense"].measured == pytest.approx(0.8 / 0.6)
    assert found["the same with the best attention / our dense"].measured == pytest.approx(0.7 / 0.6)
    assert found["routing + gather + scatter / our block at keep 0.5"].measured == pytest.approx(0.13)
    assert found["the same without the row steps that a dense block has too"].holds is False
    assert found["our dense block's FLOP/s / the largest product's"].measured == pytest.approx(
        100 / 6e-4 / 1e6
    )
    assert found["latency at keep 0.3 / ours at keep 1"].holds is None
    text = "\n".join(render.target_table(found.values()))
    assert "| at most 0.025 | 0.03 | **no** |" in text and "| not measured |" in text


def test_a_baseline_that_no_graph_holds_leaves_no_ratio(tmp_path):
    """The document and the pictures are made of what is there: here the eager rows."""
    captured = [{n: v for n, v in row.items() if n != "of_baseline"} for row in rows()[1:]]
    eager = [row | {"mode": "eager"} for row in rows() if row["mode"] == "graph"]
    found = {t.what: t for t in targets.targets(captured + eager, None)}
    assert found["latency at keep 0.5 / ours at keep 1"].holds is None
    assert found["the same with the best attention / our dense"].holds is None
    path = tmp_path / "a.jsonl"
    append(path, FACTS, captured)
    with pytest.raises(ValueError, match="no suite to draw"):
        draw_results(path, tmp_path)
    append(path, FACTS, captured + eager)
    assert [picture.name for picture in draw_results(path, tmp_path)] == ["nvidia-h200-8-bfloat16-block.png"]


def test_a_roof_is_of_one_machine_and_the_larger_of_two_times(tmp_path):
    found = write.read(results(tmp_path))
    roof = roof_of(found, "NVIDIA H200", "bfloat16", 8)
    assert roof == Roof(800e12, 4e12) and roof.balance == 200
    assert roof_of(found, "NVIDIA H200", "float16", 8) is None
    adaln, product = (row for row in found if row["suite"] == "operator")
    lines = render.roofline_table([adaln, product], roof, 1e-6)
    assert lines[2] == "| adaln | triton | 16 x 1024 | 0.5 | bytes | 0.50 | 0.05 |  | 0.45 |"
    assert "| FLOPs | 0.54 | 0.02 | 0.02 | 0.42 |" in lines[3]


def test_the_document_has_every_row_and_every_picture(tmp_path, monkeypatch):
    for name, path in (("RESULTS", tmp_path), ("PICTURES", tmp_path / "pictures")):
        monkeypatch.setattr(write, name, path)
    monkeypatch.setattr(write, "DOCUMENT", tmp_path / "performance.md")
    monkeypatch.setattr(write, "ROOT", tmp_path)
    results(tmp_path)
    write.main()
    text = (tmp_path / "performance.md").read_text()
    assert "## NVIDIA H200, bfloat16" in text and "No GPU has been measured" not in text
    assert "refused: no kernel / none" in text and "| mod_block cuda | 0.5 | eager, cold | 0.9 |" in text
    assert "| linear_scatter | sm_90 | 16384 | 1152 x 4608 |" in text
    assert "## Predicted, not measured" in text and "## Kernels, compiled ahead of time" in text
    assert "| DiffRatio-LT | 0.797 | 0.793 | 0." in text and "Nothing of this has been measured" in text
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    stem = "nvidia-h200-8-bfloat16"
    assert pictures == [f"{stem}-block.png", f"{stem}-roofline-16x1024x1152x300.png"]
    assert all(f"(performance/{name})" in text for name in pictures)


def test_what_cannot_be_drawn_is_said(tmp_path):
    path = tmp_path / "a.jsonl"
    append(path, FACTS, [peak("copy", bytes=1)])
    with pytest.raises(ValueError, match="no suite to draw"):
        draw_results(path, tmp_path)
    with pytest.raises(ValueError, match=r"b\.jsonl is not a file"):
        draw_results(tmp_path / "b.jsonl", tmp_path)


def test_kernels_show_the_worst_of_their_configurations():
    record = json.loads(write.KERNELS.read_text())["rows"]
    one = next(row for row in record if row["matrix"])
    worse = one | {"registers": one["registers"] + 1, "spills": 4}
    [line] = render.kernel_table([one, worse])[2:]
    assert f"| 2 | {one['registers'] + 1} | 1 |" in line and next(iter(one["matrix"])) in line
