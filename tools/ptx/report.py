"""What ran in the executor: launches and speed of each kernel, the share of its lines, all instructions.

Test processes leave a file each in build/ptx/ran (`save`); as a script this adds them up. Lines of a kernel
are those of all its compiled variants; a line has run if a thread has executed it in any process.

python -m tools.ptx.report [--json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

RAN = Path(__file__).parents[2] / "build" / "ptx" / "ran"
FORMS = RAN.with_name("forms.json")  # of whatever ships: forms.py
OPCODE = re.compile(r"^\s*(?:@!?%\w+\s+)?([a-z]\w*(?:\.[\w:]+)*)")


def save(
    architecture: int,
    variants: dict[str, list[tuple[str, dict[int, bool]]]],
    counts: Counter,
    budget: dict[str, float],
) -> None:
    """Leave what one process has run.

    variants: kernel -> the PTX of each of its variants, and line -> whether it has run. counts: those of
    `Launches`. budget: check -> the largest part of the error budget that it used.
    """
    found = defaultdict(dict)
    for kernel, texts in variants.items():
        for text, lines in texts:
            opcodes = text.splitlines()
            # One text of nvcc holds every instance of a template: told apart by where they stand.
            name = f"{hashlib.sha256(text.encode()).hexdigest()[:16]}-{min(lines, default=0)}"
            found[kernel][name] = [
                (line, OPCODE.match(opcodes[line - 1])[1], ran)
                for line, ran in lines.items()
                if _holds_code(opcodes, line)
            ]
    RAN.mkdir(parents=True, exist_ok=True)
    sums = [[*(key if isinstance(key, tuple) else (key, "launches")), value] for key, value in counts.items()]
    file = RAN / f"{architecture}-{os.getpid()}-{os.urandom(4).hex()}.json"
    left = {"architecture": architecture, "variants": found, "sums": sums, "budget": budget}
    partial = file.with_suffix(".partial")  # a killed process leaves no half of a file
    partial.write_text(json.dumps(left))
    partial.replace(file)


def _holds_code(lines: list[str], number: int) -> bool:
    return number <= len(lines) and OPCODE.match(lines[number - 1]) is not None


def added_up() -> dict:
    """Of all files: a row for each kernel and architecture, and the forms of instructions, run or not."""
    ran: dict = defaultdict(lambda: defaultdict(dict))
    sums: dict = defaultdict(Counter)
    forms: dict[str, bool] = {}
    budget: dict = defaultdict(dict)
    for file in sorted(RAN.glob("*.json")):
        found = json.loads(file.read_text())
        for kernel, variants in found["variants"].items():
            lines = ran[kernel, found["architecture"]]
            for name, rows in variants.items():
                for line, form, done in rows:
                    lines[name][line] = lines[name].get(line, False) or done
                    forms[form] = forms.get(form, False) or done
        for kernel, what, value in found["sums"]:
            sums[kernel, found["architecture"]][what] += value
        for name, used in found["budget"].items():
            part = budget[_kernel_of(name)]
            part[found["architecture"]] = max(used, part.get(found["architecture"], 0.0))
    rows = []
    for (kernel, architecture), variants in sorted(ran.items()):
        every = [done for lines in variants.values() for done in lines.values()]
        count = sums[kernel, architecture]
        rows.append(
            {
                "kernel": kernel, "architecture": architecture, "variants": len(variants),
                "launches": count["launches"], "instructions": count["instructions"],
                "seconds": round(count["seconds"], 2), "lines": len(every), "lines_run": sum(every),
                "unfenced": count["unfenced"], "overwritten": count["overwritten"], "moved": count["moved"],
            }
        )  # fmt: skip
    ran = {form for form, done in forms.items() if done}
    shipped = json.loads(FORMS.read_text()) if FORMS.exists() else {}
    return {
        "rows": rows, "forms": len(ran), "shipped": len(shipped), "not_run": sorted(set(shipped) - ran),
        "budget": dict(sorted(budget.items())),
    }  # fmt: skip


def _kernel_of(check: str) -> str:
    """ "scatter_rescale bfloat16" of the check "triton scatter_rescale bfloat16: d gate"."""
    return check.partition(":")[0].removeprefix("triton ")


def main() -> int:
    parser = argparse.ArgumentParser(description="What ran in the executor of PTX, from build/ptx/ran.")
    parser.add_argument("--json", action="store_true", help="print everything found as JSON")
    arguments = parser.parse_args()
    found = added_up()
    if arguments.json:
        print(json.dumps(found))
        return 0
    if not found["rows"] or not found["shipped"]:
        print(f"nothing to add up in {RAN}, or no {FORMS.name} (forms.py): make ptx writes both")
        return 1
    table = Table("kernel", title="in the executor of PTX")
    for column in ("sm", "variants", "launches", "M instructions", "M/s", "lines run", "moved in flight"):
        table.add_column(column, justify="right")
    for row in found["rows"]:
        millions = row["instructions"] / 1e6
        table.add_row(
            row["kernel"], str(row["architecture"]), str(row["variants"]), str(row["launches"]),
            f"{millions:.2f}", f"{millions / row['seconds']:.1f}" if row["seconds"] else "",
            f"{row['lines_run'] / max(row['lines'], 1):.0%}",
            str(row["moved"] or ""),
        )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    worst = Table("checked", "sm_80", "sm_90", title="largest part of the error budget")
    for name, used in found["budget"].items():
        if "bfloat16" in name:
            worst.add_row(name, *(f"{used.get(architecture, 0):.2f}" for architecture in (80, 90)))
    console.print(worst)
    print(f"{found['forms']} forms of instructions ran; {found['shipped']} ship, not run of those: ", end="")
    print(", ".join(found["not_run"]) or "none")
    return 0


if __name__ == "__main__":
    sys.exit(main())
