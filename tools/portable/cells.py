"""The cells of `make portable`: each asks for settings of the libraries below us, which choose their kernels.

A cell takes one setting of each axis. Cells cover every pair of settings of two axes; the full product would
take more than an hour. oneDNN and MKL are held to AVX2 once each; where MKL does not obey, as on other
processors than Intel's, its own words say what it runs on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product


@dataclass(frozen=True, eq=False)
class Setting:
    """environment: the variables that ask for it. proof: what `proof.in_effect` must then say."""

    name: str
    environment: dict[str, str]
    proof: dict[str, str]


@dataclass(frozen=True)
class Cell:
    """Settings that are in effect together while the tests run."""

    settings: tuple[Setting, ...]

    @property
    def name(self) -> str:
        return "-".join(setting.name for setting in self.settings)

    @property
    def environment(self) -> dict[str, str]:
        return {name: value for one in self.settings for name, value in one.environment.items()}

    @property
    def proof(self) -> dict[str, str]:
        return {name: value for one in self.settings for name, value in one.proof.items()}


def threads(count: int) -> Setting:
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    waiting = {"OMP_WAIT_POLICY": "passive"}  # threads of two processes share the cores: none may spin
    return Setting(str(count), dict.fromkeys(variables, str(count)) | waiting, {"threads": str(count)})


OPENBLAS = [
    Setting(name, {"OPENBLAS_CORETYPE": name}, {"OpenBLAS": name})
    for name in ("Nehalem", "Haswell", "SkylakeX", "Zen")
]
TORCH = [
    Setting(name, {"ATEN_CPU_CAPABILITY": name}, {"torch": name.upper()})
    for name in ("default", "avx2", "avx512")
]
THREADS = [threads(1), threads(2)]
AXES = [OPENBLAS, TORCH, THREADS]
HELD = [
    Setting("oneDNN_avx2", {"ONEDNN_MAX_CPU_ISA": "AVX2"}, {"oneDNN": "Intel AVX2"}),
    Setting("MKL_avx2", {"MKL_ENABLE_INSTRUCTIONS": "AVX2"}, {"MKL": "AVX2"}),
]
SETTINGS = [setting for axis in [*AXES, HELD] for setting in axis]
VARIABLES = {name for setting in SETTINGS for name in setting.environment} | {"DNNL_MAX_CPU_ISA"}
"""A cell decides on these alone, whatever the machine sets."""


def pairwise(axes: Sequence[Sequence[Setting]]) -> list[tuple[Setting, ...]]:
    """Combinations of one setting of each axis: every pair of settings of two axes is in one of them."""
    candidates = list(product(*axes))
    missing = {pair for settings in candidates for pair in combinations(settings, 2)}
    chosen = []
    while missing:
        best = max(candidates, key=lambda settings: len(missing.intersection(combinations(settings, 2))))
        missing.difference_update(combinations(best, 2))
        chosen.append(best)
    return chosen


def matrix(usable: Sequence[Setting] = tuple(SETTINGS)) -> list[Cell]:
    """The cells that can run where only some settings are usable."""
    axes = [[setting for setting in axis if setting in usable] for axis in AXES]
    held = [(setting, axes[2][0]) for setting in HELD if setting in usable and axes[2]]
    return [Cell(settings) for settings in [*pairwise(axes), *held]]


def every_cell() -> list[Cell]:
    """All that can be asked for by name: the full product, and what is held."""
    return [Cell(settings) for settings in [*product(*AXES), *((setting, THREADS[0]) for setting in HELD)]]
