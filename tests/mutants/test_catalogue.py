"""The catalogue of planted bugs fits the sources and tests as they are."""

import shlex
from pathlib import Path

from tools.mutants.catalogue import MUTANTS
from tools.mutants.sandbox import mutated

ROOT = Path(__file__).parents[2]


def test_there_are_enough():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 200
    assert len({mutant.kind for mutant in MUTANTS}) >= 25


def test_every_text_occurs_once_in_its_file():
    for mutant in MUTANTS:
        text = mutated((ROOT / mutant.file).read_text(), mutant.edits)
        if mutant.file.endswith(".py"):
            compile(text, mutant.name, "exec")


def test_selections_exist():
    for tests in {mutant.tests for mutant in MUTANTS}:
        paths = [word for word in shlex.split(tests) if word.startswith("tests/")]
        assert paths, tests
        for path in paths:
            file, _, test = path.partition("::")
            assert (ROOT / file).exists(), path
            assert not test or f"def {test.partition('[')[0]}(" in (ROOT / file).read_text(), path
