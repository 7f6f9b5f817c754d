"""What the ahead-of-time gate lets pass: known_spills.json lists the rows that may spill, by Triton."""

from __future__ import annotations

import json
from pathlib import Path

from ..aot.compare import regressions
from ..aot.report import name
from ..aot.rules import BLOCKS, broken

KNOWN = Path(__file__).with_name("known_spills.json")
GOLDEN = Path(__file__).parents[2] / "tests/golden/kernels.json"
SPILL = ("spills", "stack", "local")


def judged(
    found: dict, version: str, known: dict | None = None, golden: dict | None = None
) -> tuple[list[str], int]:
    """Hold a report of `make kernels` against the rules, the list and the golden file.

    Figures are compared where the same compilers made them, the rows always.

    Args:
        found: the report.
        version: the Triton that made it, whose list is taken.
        known: the list (known_spills.json).
        golden: a report that has every row (tests/golden/kernels.json).

    Returns:
        What is wrong, in words, and how many rows the list excused.
    """
    known = json.loads(KNOWN.read_text()) if known is None else known
    golden = json.loads(GOLDEN.read_text()) if golden is None else golden
    allowed = known["spills"].get(version, {})
    rows = {name(row): row for row in found["rows"]}
    wrong = [f"{key}: lost" for key in sorted({name(row) for row in golden["rows"]} - rows.keys())]
    for key, row in rows.items():
        excused = SPILL if row["spills"] <= allowed.get(key, 0) else ()
        if version != golden["toolchain"]["triton"]:
            excused += (BLOCKS,)  # another compiler may take a register more
        wrong += [f"{key}: {words}" for words in broken(row) if not words.startswith(excused)]
    mended = [key for key in allowed if key in rows and not any(rows[key][figure] for figure in SPILL)]
    wrong += [f"{key}: keeps the rules, remove it from the list" for key in mended]
    wrong += [f"{key}: is in the list, but no kernel" for key in allowed.keys() - rows.keys()]
    wrong += [line for line in regressions(golden, found) if not line.endswith(": lost")]
    return wrong, len(allowed)
