"""The modules of this folder, which run.py imports as a script does."""

import importlib
from pathlib import Path

import pytest


@pytest.fixture
def here(monkeypatch):
    """Imports a module of this folder."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module
