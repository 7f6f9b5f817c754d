"""Which instruction set the row kernels run on: the best unless less is asked for, and what runs is said."""

import json
import os
import subprocess
import sys

import pytest
import torch

from diffratio_kernels import _native
from tools.checks.instruction_sets import instruction_set

ASK = "from diffratio_kernels import _native; print(_native.instruction_set())"


def child(capability, *command):
    """Output and errors of a Python process in which the environment asks for an instruction set."""
    environment = {name: value for name, value in os.environ.items() if name != _native.CAPABILITY}
    if capability is not None:
        environment[_native.CAPABILITY] = capability
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    return done.stdout.strip(), done.stderr


def test_the_best_is_taken_unless_the_environment_asks_for_another():
    best, *_ = _native.instruction_sets()
    assert best == next(name for name in _native.INSTRUCTION_SETS if name in _native.instruction_sets())
    assert child(None, "-c", ASK)[0] == best
    found = json.loads(child("baseline", "-m", "diffratio", "doctor", "--json")[0])
    assert found["native"]["instruction_set"] == "baseline"


def test_an_unknown_one_is_an_error():
    said = f"ValueError: {_native.CAPABILITY}: 'avx1024' must be one of avx512, avx2, baseline"
    assert said in child("avx1024", "-c", ASK)[1]
    for name in ("AVX2", ""):
        with pytest.raises(ValueError, match=f"'{name}' must be one of"):
            _native.use_instruction_set(name)


def test_one_that_this_processor_lacks_is_an_error(monkeypatch):
    monkeypatch.setattr(_native, "instruction_sets", lambda: ["avx2", "baseline"])
    with pytest.raises(ValueError, match="no 'avx512' row kernels can run here, only avx2, baseline"):
        _native.use_instruction_set("avx512")
    with pytest.raises(RuntimeError, match="no avx10 kernels can run here"):
        torch.ops.diffratio_native.use_instruction_set("avx10")


def test_every_level_is_code_of_its_own(every_instruction_set):
    """The name comes from the macros that the compiler defines for the code itself, not from the choice."""
    assert _native.instruction_set() == every_instruction_set


def test_the_level_is_restored_after_an_error():
    before = _native.instruction_set()
    with pytest.raises(KeyError), instruction_set("baseline"):
        assert _native.instruction_set() == "baseline"
        raise KeyError
    assert _native.instruction_set() == before
