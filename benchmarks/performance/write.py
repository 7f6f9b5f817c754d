"""Writes docs/performance.md and its pictures from benchmarks/results/*.jsonl, the record of kernels compiled
ahead of time, and the planner: python -m benchmarks.performance.write"""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

from benchmarks.performance.paper import paper_section
from benchmarks.performance.prediction import prediction_error
from benchmarks.performance.render import kernel_table, markdown, roofline_table, subject_tables, target_table
from benchmarks.performance.targets import targets
from diffratio.evaluation.flops import TransformerShape
from diffratio.evaluation.results import file_of, read, roof_of, select
from diffratio.plan import DEVICES, plan
from diffratio.plots.results import MACHINE, draw_results
from diffratio_kernels import kept_tokens
from diffratio_kernels._triton import tiles

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "performance.md"
PICTURES = ROOT / "docs" / "performance"
KERNELS = ROOT / "tests" / "golden" / "kernels.json"
SHAPES = ((16, 1024), (2, 4096), (16, 4096), (2, 1024), (1, 1024), (128, 256))
"""Shapes that are predicted for GPUs (B, N)."""
HEAD = """# Performance

Written by `python -m benchmarks.performance.write`; every row of every subject in `benchmarks/results` is
here. "of baseline" is the time as a part of the first candidate's in the same round (median of rounds);
"spread" the distance of the 20th and the 80th percentile over the median; "E" the FLOP ratio over the latency
ratio: 1 where pruned FLOPs became saved time. Nothing is timed that is outside of the error budget.
`diffratio bench SUITE` measures, `diffratio plot FILE.jsonl` draws, `make gpu` does all of it on a GPU.
"""


def machine_section(rows: list[dict]) -> list[str]:
    """One machine, dtype and number of threads."""
    first = rows[0]
    gpu = first["capability"] is not None
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items() if version)
    dates = sorted({row["date"] for row in rows})
    lines = [
        f"## {first['device']}, {first['dtype']}" + ("" if gpu else f", {first['threads']} threads"), "",
        f"{dates[0]} to {dates[-1]}; {versions}"
        + (f"; driver {first['driver']}, CUDA {first['cuda']}" if gpu else "; ratios only"), "",
    ]  # fmt: skip
    roof = roof_of(rows, first["device"], first["dtype"], first["threads"])
    batch = 16 if gpu else 1
    lines += [f"### What has to be shown, here at B={batch} N=1024", ""]
    if not gpu:
        lines += ["The figures are promised of an H200 in bf16; this processor is for orientation.", ""]
    lines += [*target_table(targets(rows, roof, batch)), ""]
    lines += error_section(rows)
    for suite in dict.fromkeys(row["suite"] for row in rows):
        own = [row for row in rows if row["suite"] == suite]
        if suite == "operator" and roof is not None:
            lines += roofline_section(rows, roof, gpu)
        lines += ["<details>", f"<summary>Suite {suite}: every row</summary>", ""]
        lines += [*subject_tables(own, gpu), "</details>", ""]
    return lines


def error_section(rows: list[dict]) -> list[str]:
    """How well the planner foretells the blocks of this machine."""
    found = [(error, name) for left_out, name in ((False, "all operators measured"),
             (True, "the operators at the block's own kept part left out"))
             if (error := prediction_error(rows, left_out)) is not None]  # fmt: skip
    if not found:
        return []
    cells = [[name, *(_percent(error.summary()[key]) for key in
              ("median", "worst", "ratio_median", "ratio_worst"))] for error, name in found]  # fmt: skip
    head = ("`diffratio plan --results` against measured blocks", "time, median error", "worst",
            "ratio to keep 1, median error", "worst")  # fmt: skip
    return [*markdown(head, cells), ""]


def roofline_section(rows: list[dict], roof, gpu: bool) -> list[str]:
    mode = "graph" if gpu else "eager"
    launch = next((row["seconds"] for row in select(rows, subject="launch", mode=mode)), 0.0)
    own = select(rows, suite="operator", mode=mode, cache="cold")
    return [
        "### Operators and the roofline", "",
        "The roof is the larger of FLOPs over the largest product's FLOP/s and of bytes that must move over "
        "the copy's bytes/s, both measured on this machine. More than 1 is a cache that serves what was just "
        "written. The other columns say where the rest of the time goes.", "",
        *roofline_table(own, roof, launch), "",
    ]  # fmt: skip


def predicted_section() -> list[str]:
    """Latency ratios of GPUs that nobody has measured yet."""
    parts = (0.9, 0.8, 0.7, 0.5, 0.3)
    lines = []
    for name, device in DEVICES.items():
        for batch, tokens in SHAPES:
            shape = TransformerShape(28, 1152, 16, tokens, 300)
            plans = [plan(shape, batch, kept_tokens(round(10 * part), tokens), device) for part in parts]
            ratios = [f"{one.latency_ratio:.2f} ({one.realised:.2f})" for one in plans]
            lines.append([name, f"{batch} x {tokens}", *ratios, f"{plans[0].break_even}"])
    head = ("GPU", "B x N", *(f"keep {part}" for part in parts), "break-even")
    return [
        "## Predicted, not measured", "",
        "Latency of 28 routed blocks over 28 of our dense ones, and E in brackets, by the roofline of the "
        "datasheets (`diffratio plan --device`); bf16, text keys and values cached. It knows no tiles: small "
        "products take longer. Break-even: the tenth of the tokens up to which the blocks are no slower.",
        "",
        *markdown(head, lines, text=2), "",
    ]  # fmt: skip


def kernel_section() -> list[str]:
    record = json.loads(KERNELS.read_text())
    tools = ", ".join(f"{name} {version}" for name, version in record["toolchain"].items())
    rows = record["rows"]
    spilling = sum(row["spills"] > 0 for row in rows)
    return [
        "## Kernels, compiled ahead of time", "",
        f"{len(rows)} configurations, {spilling} of them spill ({tools}). All: `make kernels`.", "",
        *kernel_table(rows), "",
    ]  # fmt: skip


def choice_section() -> list[str]:
    """By what "auto" decides, and what was measured of attention."""
    lines = [
        [e.kind, f"sm_{e.architecture}", f"{e.queries} x {e.keys}", str(e.head_dim),
         ", ".join(f"{ratio:.2f} of {name}" for name, ratio in e.of.items()), e.on]
        for e in tiles.ATTENTION_RATIOS
    ]  # fmt: skip
    head = ("attention", "for", "queries x keys", "head", "our time", "measured on")
    table = markdown(head, lines, text=2) if lines else ["No ratio of attention has been measured yet."]
    return [
        "## What `auto` takes on a GPU", "",
        "In half precision our seconds as a part of each library's decide. `python -m tools.tune.tune` "
        "measures them on a GPU, `diffratio_kernels/_triton/tiles.json` holds them, "
        "`diffratio_kernels/_choice.py` reads them. Attention has ratios by compute capability, kind "
        "(`self`: equal samples, as many keys as queries; `cross`: equal samples, another number of "
        "keys; `ragged`: samples that differ; `two_bins`), width of a head and longest sample. The "
        "fastest of sdpa, cudnn, varlen and flash_attn that can run counts: below 1 ours is taken, else "
        "that library. A ratio holds for shapes within a factor of 2 of its own, the nearest first. "
        "Where there is none: torch's for equal samples, ours for others and for two bins. A predicted "
        "ratio of a product, or one of another architecture, must be below 0.9. With a gradient "
        "attention is ours, whose bits are the same on every run, and so is the MLP, for its memory. "
        "`diffratio doctor` and `summary` say what is taken and why.",
        "",
        *table, "",
    ]  # fmt: skip


def tile_section() -> list[str]:
    """Products with an epilogue of ours: which tile, and whether it beats the library's product."""
    lines = [
        [e.kernel, f"sm_{e.architecture}", str(e.rows), f"{e.columns} x {e.inner}",
         " x ".join(map(str, e.tile[:3])), f"{e.of_library:.2f}", f"{e.source} {e.on}".strip()]
        for e in tiles.PRODUCT_TILES
    ]  # fmt: skip
    head = ("product", "for", "rows", "columns x inner", "tile", "of the library's", "source")
    return [
        "## Products that end in our kernels", "",
        "Their time as a part of that of the library's product and a row kernel after it, by the table that "
        "`mod_block` reads (`tools/tune/tune.py`). In the model a tile of sm_90 reaches at most the part of "
        "the peak that shared memory feeds: 0.50 at 64 x 64, 0.80 at 128 x 128.", "",
        "<details>", f"<summary>{len(lines)} shapes</summary>", "", *markdown(head, lines, text=2), "",
        "</details>", "",
    ]  # fmt: skip


def document(rows: list[dict], pictures: list[Path]) -> str:
    lines = [HEAD]
    machines = dict.fromkeys(tuple(row[name] for name in MACHINE) for row in rows)
    if not any(row["capability"] for row in rows):
        lines += [
            "**No GPU has been measured yet: there is no figure of one below that is not predicted.**",
            "",
        ]
    for machine in machines:
        own = [row for row in rows if tuple(row[name] for name in MACHINE) == machine]
        lines += machine_section(own)
        stem = file_of(PICTURES, machine[0]).stem
        mine = [path for path in pictures if path.stem.startswith(f"{stem}-{machine[1]}-{machine[2]}-")]
        lines += [line for path in mine for line in (f"![{path.stem}](performance/{path.name})", "")]
    sections = predicted_section(), paper_section(RESULTS), choice_section(), tile_section(), kernel_section()
    return "\n".join(chain(lines, *sections))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def main() -> None:
    files = sorted(RESULTS.glob("*.jsonl"))
    pictures = [picture for path in files for picture in draw_results(path, PICTURES)]
    DOCUMENT.write_text(document(read(*files), pictures))
    print(f"written: {DOCUMENT.relative_to(ROOT)} and {len(pictures)} pictures from {len(files)} files")


if __name__ == "__main__":
    main()
