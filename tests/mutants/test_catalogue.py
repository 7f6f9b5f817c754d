"""The catalogue of planted bugs fits the sources and tests as they are."""

import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def mutants(here):
    return here("catalogue").MUTANTS


def test_there_are_enough(mutants):
    assert len({mutant.name for mutant in mutants}) == len(mutants) >= 44
    assert len({mutant.kind for mutant in mutants}) >= 25


def test_every_text_occurs_once_in_its_file(mutants, here):
    for mutant in mutants:
        text = here("sandbox").mutated((ROOT / mutant.file).read_text(), mutant.edits)
        if mutant.file.endswith(".py"):
            compile(text, mutant.name, "exec")


def test_selections_exist(mutants):
    for tests in {mutant.tests for mutant in mutants}:
        paths = [word for word in shlex.split(tests) if word.startswith("tests/")]
        assert paths, tests
        for path in paths:
            file, _, test = path.partition("::")
            assert (ROOT / file).exists(), path
            assert not test or f"def {test.partition('[')[0]}(" in (ROOT / file).read_text(), path
