"""The table of tiles and ratios, diffratio_kernels/_triton/tiles.json.

python -m tools.tune.tune [--predict] [--minutes N] [--table FILE]

On a GPU every tile that compiles without spills is checked against the error budget, then timed beside the
library's product with a row kernel; and our attention beside every library, at the shapes of ratios.py.
Candidates are interleaved, in CUDA graphs, on rotating buffers. One that fails, or is outside of the budget,
is printed as refused, and the others go on. A shape is written as soon as it is measured, to another table
than the package's beside what that one holds; the next call at the same commit, on the same GPU and with the
same torch and Triton, goes on with the others. --predict asks the tile-and-wave model instead, and leaves
what was measured. Triton's interpreter checks small shapes, and writes ratios to a table that it drops.

Exit code 0: every shape is in the table; 1: one of ours was refused; 75: time was up before; 77: there is no
GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch

from benchmarks.harness.machine import commit
from benchmarks.harness.timing import passes_of, rotations
from diffratio.evaluation.latency import rotating_times
from diffratio.plan import DEVICES
from diffratio_kernels._triton import tiles as tile_table
from diffratio_kernels._triton.tiles import AttentionRatio
from diffratio_kernels.testing.budget import check_budget
from diffratio_kernels.testing.cases import cast

from ..gpu.looks import NOT_AVAILABLE, TIME_IS_UP
from ..guards.interpreter import interpreted
from .candidates import SMALL, candidates, compiles, predicted
from .ratios import REHEARSED, Bucket, buckets, ratios
from .subjects import HELD, WAYS, Subject, draw, subjects, tile_of
from .table import Table

ROUNDS = 15
PREDICTED_FOR = {80: DEVICES["a100"], 90: DEVICES["h200"]}


def predict(table: Table) -> None:
    """Replace every product's entry that is not measured."""
    for subject in subjects():
        for architecture, device in PREDICTED_FOR.items():
            entry = None if subject.is_attention else asdict(predicted(subject, architecture, device))
            if entry and table.get(entry).get("source") != "measured":
                table.put({name: value for name, value in entry.items() if name != "on"})
    table.save()


def refuse(what: object, error: object) -> None:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    print(f"refused: {what}: {reason[0]}", flush=True)


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
            refuse(f"{subject} {tile}", error)
    return tuple(right)


def measure(
    subject: Subject, architecture: int, tiles: tuple, dtype: torch.dtype, device: str, rounds: int
) -> dict[tuple[int, ...], float]:
    """Tile -> its seconds as a part of the library's; without those that cannot be captured."""
    ways, gpu, tensors = WAYS[subject.kernel], device != "cpu", draw(subject, dtype, device)
    sets = rotations(sum(t.nbytes for t in tensors.values()), device) if gpu else 1
    drawn = [tensors, *(draw(subject, dtype, device) for _ in range(sets - 1))]
    passes, _ = passes_of({"library": [partial(ways.library, t) for t in drawn]}, gpu, ())
    for tile in tiles:
        with tile_of(subject, architecture, tile):  # a graph keeps the tile that it was captured with
            found, failed = passes_of({tile: [partial(ways.ours, t) for t in drawn]}, gpu, (Exception,))
        if failed:
            refuse(f"{subject} {tile}", failed[tile])
        elif gpu:
            passes |= found
        else:
            passes[tile] = partial(_with_tile, subject, architecture, tile, found[tile])
    times = rotating_times(passes, sets, rounds, device, progress=False)
    return {tile: times[tile].ratio(times["library"]) for tile in tiles if tile in times}


def _with_tile(subject: Subject, architecture: int, tile: tuple[int, ...], one_pass) -> None:
    with tile_of(subject, architecture, tile):
        one_pass()


def may_run(subject: Subject, architecture: int, tile: tuple[int, ...]) -> bool:
    try:
        return compiles(subject, architecture, tile)
    except Exception:  # `right_tiles` launches it, and says what is wrong
        return True


def tune_tiles(table: Table, subject: Subject, on: str) -> int:
    """Measure one shape and put its best tile into the table; how many tiles were refused."""
    entry = key_of(subject)
    architecture = entry["architecture"]
    tiles = tuple(t for t in candidates(subject, architecture) if may_run(subject, architecture, t))
    right = right_tiles(subject, architecture, tiles, torch.bfloat16, "cuda")
    found = measure(subject, architecture, right, torch.bfloat16, "cuda", ROUNDS) if right else {}
    if found:
        times = " ".join(f"{tile}: {ratio:.3f}" for tile, ratio in found.items())
        print(*vars(subject).values(), times, flush=True)
        best = min(found, key=found.__getitem__)
        of_library = {} if subject.is_attention else {"of_library": round(found[best], 3)}
        table.put(entry | {"tile": best, **of_library, "source": "measured", "on": on})
    return len(tiles) - len(found)


def tune_ratios(table: Table, bucket: Bucket, on: str) -> int:
    """Measure our attention, with the tile of this table, beside every library; whether ours was refused."""
    architecture = tile_table.architecture(torch.device("cuda"))
    tile = table.get({"kernel": "attention_fwd", "architecture": architecture, "held": HELD})["tile"]
    shipped = tile_table.ATTENTION_TILES["attention_fwd"][architecture]
    with mock.patch.dict(shipped, {HELD: tuple(tile)}):  # shapes halve it as they do
        return put_ratios(table, bucket, key_of(bucket) | {"on": on}, torch.bfloat16, "cuda", ROUNDS)


def put_ratios(
    table: Table, bucket: Bucket, entry: dict, dtype: torch.dtype, device: str, rounds: int
) -> int:
    of, refused = ratios(bucket, dtype, device, rounds)
    for row in refused:
        refuse(f"{bucket}: {row['name']}", row["refused"])
    if of:
        print(bucket, " ".join(f"of {name}: {ratio:.3f}" for name, ratio in of.items()), flush=True)
        table.put(entry | {"of": of, "source": "measured"})
    return sum("failed" in row for row in refused)


def key_of(subject: Subject | Bucket) -> dict:
    """What names its entry in the table on this GPU."""
    device = torch.device("cuda")
    if isinstance(subject, Bucket):
        return subject.key(tile_table.capability(device))
    entry = {"kernel": subject.kernel, "architecture": tile_table.architecture(device)}
    return entry | ({"held": HELD} if subject.is_attention else vars(subject))


def here() -> str:
    """What a measurement is made on."""
    versions = f"torch {torch.__version__}, Triton {version('triton')}"
    return f"{torch.cuda.get_device_name()}, {versions}, commit {commit()}"


def tune(table: Table, minutes: float) -> tuple[int, int]:
    """Measure and write shape after shape until time is up; how many are left, and how many candidates of
    ours were refused."""
    end, on, left, refused = time.monotonic() + 60 * minutes, here(), 0, 0
    for subject in sorted([*buckets(), *subjects()], key=_first):
        if table.get(key_of(subject)).get("on", "").startswith(on):
            continue
        if time.monotonic() > end:
            left += 1
            continue
        measured = tune_ratios if isinstance(subject, Bucket) else tune_tiles
        try:
            refused += measured(table, subject, f"{on}, {date.today()}")
            table.save()
            torch.cuda.empty_cache()
        except Exception as error:  # whatever it is, the other shapes are measured
            refuse(subject, error)
            refused += 1
    return left, refused


def _first(subject: Subject | Bucket) -> int:
    """Tiles of attention, ratios with these, products."""
    return 1 if isinstance(subject, Bucket) else 0 if subject.is_attention else 2


def rehearse() -> int:
    """Small shapes in Triton's interpreter: every way runs, and the check, and ratios are written and read
    again; how many candidates of ours were refused."""
    refused = 0
    for subject in subjects(width=24, hidden=40, head_dim=8, rows=(17,), tokens=17):
        architecture, tiles = tile_table.assumed_architecture, SMALL[subject.is_attention]
        right = right_tiles(subject, architecture, tiles, torch.float16, "cpu")
        refused += len(tiles) - len(right)
        measure(subject, architecture, right, torch.float16, "cpu", 1)
        print(f"{subject.kernel}: {len(right)} tiles within the error budget")
    with TemporaryDirectory() as folder:
        table = Table(Path(shutil.copy(tile_table.TABLE, folder)))
        for bucket in REHEARSED:
            refused += put_ratios(table, bucket, bucket.key(0), torch.float16, "cpu", 1)
        table.save()
        read = [AttentionRatio(**entry) for entry in json.loads(table.path.read_text())["ratios"]]
        print(f"{sum(ratio.architecture == 0 for ratio in read)} ratios written and read")
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
