"""Compiles what the steps of the look "speed" launch: python -m tools.gpu.warm_up [PROCESSES].

A process per core runs its share of all candidates once, at the sizes at which they are timed: kernels of
Triton and of torch.compile are then found in the caches that TRITON_CACHE_DIR and TORCHINDUCTOR_CACHE_DIR
name. What does not run is said here, and refused where it is measured: nothing fails a warm-up. Without a GPU
the sizes are tiny.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.harness.options import Options
from benchmarks.harness.subject import Candidate, Subject
from benchmarks.suites import subjects
from diffratio_kernels._triton import tiles

from ..tune import attention_sweep, ratios
from ..tune import subjects as tuned
from ..tune.candidates import candidates, compiles
from .looks import SUITES, TINY

GPU = torch.cuda.is_available()


def options_of(words: dict) -> Iterator[Options]:
    """Those that `diffratio bench` makes of these words, one for each batch size."""
    if GPU:
        own = {"device": "cuda", "dtype": torch.bfloat16, "compile_mode": "default"} | words
    else:
        own = TINY | {"compile_mode": None}
    sizes = {name: value for name, value in own.items() if name not in ("batch", "rounds")}
    return (Options(batch=batch, **sizes) for batch in own["batch"])


def measured() -> Iterator[Subject]:
    """Subjects of the steps that time."""
    yield from attention_sweep.subjects()
    for bucket in ratios.buckets() if GPU else ratios.REHEARSED:
        yield ratios.subject_of(bucket, attention_sweep.DTYPE, attention_sweep.DEVICE)
    for suite, words in SUITES.values():
        for options in options_of(words):
            yield from subjects(suite, options)


def jobs() -> Iterator[tuple[str, Callable[[], object]]]:
    """What to run, with its name: every candidate, and every tile that tuning tries."""
    for subject in measured():
        for candidate in subject.candidates:
            yield f"{subject.name}, {candidate.name}", partial(_run, subject, candidate)
    if GPU:  # products are specialised by their weight and by whether 16 divides the rows
        architecture, seen = tiles.architecture(torch.device("cuda")), set()
        for subject in tuned.subjects():
            key = subject.kernel, subject.rows % 16 == 0
            if key not in seen:
                seen.add(key)
                for tile in candidates(subject, architecture):
                    yield f"{subject.kernel} {tile}", partial(_run_tile, subject, architecture, tile)


@torch.no_grad()
def _run(subject: Subject, candidate: Candidate) -> None:
    candidate.run(subject.make(0))


@torch.no_grad()
def _run_tile(subject: tuned.Subject, architecture: int, tile: tuple[int, ...]) -> None:
    if not compiles(subject, architecture, tile):  # tuning asks that, too, of the same cache
        return
    with tuned.tile_of(subject, architecture, tile):
        tuned.WAYS[subject.kernel].ours(tuned.draw(subject, torch.bfloat16, "cuda"))


def run_share(first: int, processes: int) -> None:
    """Every `processes`-th job from the first one on."""
    for i, (name, run) in enumerate(jobs()):
        if i % processes == first:
            try:
                run()
            except Exception as error:  # the step that measures it says so in a row
                print(f"{name}: {(str(error) or repr(error)).splitlines()[0]}", flush=True)


def main(processes: int) -> None:
    # Each compiles by itself: inductor's own pools would fill the cores several times over.
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tools.gpu.warm_up"]
    shares = ([*command, str(first), str(processes)] for first in range(processes))
    running = [subprocess.Popen(share, env=environment) for share in shares]
    codes = [process.wait() for process in running]
    print(f"{processes} processes, {sum(code != 0 for code in codes)} of them ended early")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        run_share(int(sys.argv[1]), int(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) == 2 else len(os.sched_getaffinity(0)))
