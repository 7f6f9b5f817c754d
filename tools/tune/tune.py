"""The table of tiles, diffratio_kernels/_triton/tiles.json.

python -m tools.tune.tune [--predict] [--minutes N] [--table FILE]

On a GPU every tile that compiles without spills is checked against the error budget, then timed beside the
library's product with a row kernel: interleaved, in CUDA graphs, on rotating buffers. A tile outside of the
budget is refused, and the others go on. A shape is written as soon as it is measured, to another table than
the package's beside what that one holds; the next call at the same commit goes on with the others. --predict
asks the tile-and-wave model instead, and leaves what was measured. Triton's interpreter checks small shapes
and writes nothing.

Exit code 0: every shape is in the table; 1: a tile was refused; 75: time was up before; 77: there is no GPU.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness.machine import commit
from benchmarks.harness.timing import passes_of, rotations
from diffratio.evaluation.latency import rotating_times
from diffratio.plan import DEVICES
from diffratio_kernels._triton import tiles as tile_table
from diffratio_kernels.testing.budget import check_budget
from diffratio_kernels.testing.cases import cast

from ..gpu.looks import NOT_AVAILABLE, TIME_IS_UP
from ..guards.interpreter import interpreted
from .candidates import SMALL, candidates, compiles, predicted
from .subjects import HELD, WAYS, Subject, draw, subjects, tile_of
from .table import Table

ROUNDS = 15
PREDICTED_FOR = {80: DEVICES["a100"], 90: DEVICES["h200"]}


def predict(table: Table) -> None:
    """Replace every product's entry that is not measured."""
    for subject in subjects():
        for architecture, device in PREDICTED_FOR.items():
            entry = None if subject.is_attention else asdict(predicted(subject, architecture, device))
            if entry and table.source(entry) == "predicted":
                table.put(entry)
    table.save()


def right_tiles(
    subject: Subject, architecture: int, tiles: tuple, dtype: torch.dtype, device: str
) -> tuple[tuple[int, ...], ...]:
    """Those whose results are within the error budget; the others are printed as refused."""
    reference, tensors = WAYS[subject.kernel].reference, draw(subject, dtype, device)
    peer, gold = reference(tensors), reference(cast(tensors, torch.float64))
    right = []
    for tile in tiles:
        try:
            with tile_of(subject, architecture, tile):
                actual = WAYS[subject.kernel].ours(draw(subject, dtype, device))
            check_budget(f"{subject.kernel} {tile}", actual, peer, gold)
            right.append(tile)
        except Exception as error:  # whatever it is, the other tiles are measured
            print(f"refused: {subject} {tile}: {error}", flush=True)
    return tuple(right)


def measure(
    subject: Subject, architecture: int, tiles: tuple, dtype: torch.dtype, device: str, rounds: int
) -> dict[tuple[int, ...], float]:
    """Tile -> its seconds as a part of the library's."""
    ways, gpu, tensors = WAYS[subject.kernel], device != "cpu", draw(subject, dtype, device)
    sets = rotations(sum(t.nbytes for t in tensors.values()), device) if gpu else 1
    drawn = [tensors, *(draw(subject, dtype, device) for _ in range(sets - 1))]
    passes, _ = passes_of({"library": [partial(ways.library, t) for t in drawn]}, gpu, ())
    for tile in tiles:
        with tile_of(subject, architecture, tile):  # a graph keeps the tile that it was captured with
            passes |= passes_of({tile: [partial(ways.ours, t) for t in drawn]}, gpu, ())[0]
            if not gpu:
                passes[tile] = partial(_with_tile, subject, architecture, tile, passes[tile])
    times = rotating_times(passes, sets, rounds, device, progress=False)
    return {tile: times[tile].ratio(times["library"]) for tile in tiles}


def _with_tile(subject: Subject, architecture: int, tile: tuple[int, ...], one_pass) -> None:
    with tile_of(subject, architecture, tile):
        one_pass()


def tune(table: Table, minutes: float) -> tuple[int, int]:
    """Measure and write shape after shape until time is up; how many are left, and how many tiles were
    refused."""
    end, architecture = time.monotonic() + 60 * minutes, tile_table.architecture(torch.device("cuda"))
    gpu, now, left, refused = torch.cuda.get_device_name(), commit(), 0, 0
    for subject in subjects():
        entry = {"kernel": subject.kernel, "architecture": architecture}
        entry |= {"held": HELD} if subject.is_attention else vars(subject)
        known = table.source(entry)
        if known.startswith(f"measured on {gpu}, ") and known.endswith(f"commit {now}"):
            continue
        if time.monotonic() > end:
            left += 1
            continue
        tiles = tuple(t for t in candidates(subject, architecture) if compiles(subject, architecture, t))
        right = right_tiles(subject, architecture, tiles, torch.bfloat16, "cuda")
        refused += len(tiles) - len(right)
        if not right:
            continue
        ratios = measure(subject, architecture, right, torch.bfloat16, "cuda", ROUNDS)
        best = min(ratios, key=ratios.__getitem__)
        print(
            *vars(subject).values(), " ".join(f"{t}: {ratio:.3f}" for t, ratio in ratios.items()), flush=True
        )
        of_library = {} if subject.is_attention else {"of_library": round(ratios[best], 3)}
        source = f"measured on {gpu}, {date.today()}, commit {now}"
        table.put(entry | {"tile": best, **of_library, "source": source})
        table.save()
        torch.cuda.empty_cache()
    return left, refused


def rehearse() -> int:
    """Small shapes in Triton's interpreter: every way runs, and the check; how many tiles were refused."""
    refused = 0
    for subject in subjects(width=24, hidden=40, head_dim=8, rows=(17,), tokens=17):
        architecture, tiles = tile_table.assumed_architecture, SMALL[subject.is_attention]
        right = right_tiles(subject, architecture, tiles, torch.float16, "cpu")
        refused += len(tiles) - len(right)
        measure(subject, architecture, right, torch.float16, "cpu", 1)
        print(f"{subject.kernel}: {len(right)} tiles within the error budget")
    return refused


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--minutes", type=float, default=7.0, help="start no measurement later than that")
    parser.add_argument("--table", type=Path, default=tile_table.TABLE)
    arguments = parser.parse_args()
    if arguments.predict:
        predict(Table(arguments.table))
    elif torch.cuda.is_available():
        if not arguments.table.exists():
            shutil.copyfile(tile_table.TABLE, arguments.table)
        left, refused = tune(Table(arguments.table), arguments.minutes)
        print(f"{left} shapes are left" if left else f"written to {arguments.table}")
        return 1 if refused else TIME_IS_UP if left else 0
    elif interpreted():
        return 1 if rehearse() else 0
    else:
        print("there is no GPU")
        return NOT_AVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
