"""Tests marked `gpu` need a GPU. DIFFRATIO_BUDGET names a file for the largest shares of the error budget."""

import json
import os
from pathlib import Path

import pytest
import torch

from diffratio_kernels.testing import budget


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter):
    path = os.environ.get("DIFFRATIO_BUDGET")
    if path:
        counts = {name: len(terminalreporter.stats.get(name, ())) for name in ("passed", "failed", "skipped")}
        worst = {name: round(used, 3) for name, used in sorted(budget.worst.items())}
        Path(path).write_text(json.dumps({"tests": counts, "budget": worst}, indent=1) + "\n")
