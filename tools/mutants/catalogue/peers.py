"""Bugs in what other libraries are asked for, and in the paper's tables."""

from .mutant import Mutant

LIBRARIES, QUACK = "benchmarks/peers/libraries.py", "benchmarks/peers/quack.py"
ASKED = "tests/benchmarks/test_libraries.py"
TABLES, SYSTEMS = "benchmarks/a100/__main__.py", "benchmarks/a100/systems.py"
PAPER = "tests/benchmarks/test_a100.py"

PEERS = [
    Mutant(
        "top-k-with-any-tie",
        "argument",
        LIBRARIES,
        {"SMALLEST_INDEX = 1": "SMALLEST_INDEX = 0"},
        f"{ASKED} -k ties_by",
    ),
    Mutant(
        "top-k-unchecked-where-scores-tie",
        "missing check",
        LIBRARIES,
        {"drawn.mul(2).round().add(0.5)": "drawn.add(0.5)"},
        f"{ASKED} -k other_ties",
    ),
    Mutant(
        "quack-gates-the-bias-not",
        "formula",
        QUACK,
        {"c + (acc + bias) * gate": "c + acc * gate + bias"},
        f"{ASKED} -k quacks",
    ),
    Mutant(
        "rows-of-another-commit-are-done",
        "stale",
        TABLES,
        {' and r["commit"] == self.facts["commit"])': ")"},
        f"{PAPER} -k stopped",
    ),
    Mutant(
        "mod-rounded-up-is-the-papers",
        "wrong row",
        SYSTEMS,
        {'System(f"mod:{own}:floor", "mod", compression)': 'System(f"mod:{own}", "mod", compression)'},
        f"{PAPER} -k stand_beside",
    ),
]
