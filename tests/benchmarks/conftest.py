import importlib
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """A script as a module, by name."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module
