"""Pictures of result files: latency and memory against compression, and the roofline."""

from itertools import groupby
from pathlib import Path

from ..evaluation.results import file_of, read, select
from ..evaluation.roofline import roof_of
from .latency import SUITES, latency_figure
from .roofline import roofline_figure
from .style import save

MACHINE = ("device", "threads", "dtype")


def draw_results(path: Path, out: Path) -> list[Path]:
    """Write every picture that a file has rows for into `out`; returns their paths.

    Of the modes CUDA graphs are drawn where they were measured, of the caches the cold one.
    Raises ValueError for a file of other content, or one without a row to draw.
    """
    if not path.is_file():
        raise ValueError(f"results: {path} is not a file")
    rows, written = select(read(path), cache="cold"), []
    for machine in dict.fromkeys(tuple(row[name] for name in MACHINE) for row in rows):
        device, threads, dtype = machine
        own = _captured([row for row in rows if tuple(row[name] for name in MACHINE) == machine])
        stem = f"{file_of(out, device).stem}-{threads}-{dtype}"
        for suite in SUITES:
            if any(row["suite"] == suite and "of_baseline" in row for row in own):
                written.append(save(latency_figure(own, suite), out / f"{stem}-{suite}.png"))
        roof = roof_of(own, device, dtype, threads)
        operators = sorted(select(own, suite="operator"), key=_shape)
        for shape, group in groupby(operators, key=_shape) if roof is not None else ():
            name = f"{stem}-roofline-{'x'.join(map(str, shape))}.png"
            written.append(save(roofline_figure(list(group), roof), out / name))
    if not written:
        raise ValueError(f"results: {path} has no suite to draw ({', '.join(SUITES)}, or peak and operator)")
    return written


def _shape(row: dict) -> tuple[int, ...]:
    return row["batch"], row["tokens"], row["width"], row["text"]


def _captured(rows: list[dict]) -> list[dict]:
    """Rows of CUDA graphs; of the suites whose baseline has none, eager ones too."""
    graphs = {row["suite"] for row in rows if row["mode"] == "graph" and "of_baseline" in row}
    return [row for row in rows if row["mode"] == "graph" or row["suite"] not in graphs]
