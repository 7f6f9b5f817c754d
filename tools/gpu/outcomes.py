"""A pytest plugin: what each test came to, written as it happens, so that no name is lost to a time limit.

`-p tools.gpu.outcomes --outcomes FILE` appends a JSON object a line: {"test", "outcome": "started"}, then
{"test", "outcome", "seconds", "reason", "budget"}; outcome is passed, failed or skipped, budget the largest
shares of the error budget so far. A pytest-xdist process whose device is lost (an illegal memory access) ends
after the test that lost it, and another takes over: the tests after it do not fail for its fault.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

_sent: dict[str, float] = {}
"""Shares of the error budget that this process has reported."""


def read_outcomes(path: Path) -> dict:
    """How many tests passed, failed, were skipped or unfinished; reasons of those that failed, names of those
    that were running at the end, and the largest shares of the error budget, by name."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    last: dict[str, dict] = {}
    budget: dict[str, float] = {}
    for line in lines:
        for name, used in line.get("budget", {}).items():
            budget[name] = max(used, budget.get(name, 0.0))
        if last.get(line["test"], {}).get("outcome") != "failed":  # its first reason counts
            last[line["test"]] = line
    failed = {name: line["reason"] for name, line in last.items() if line["outcome"] == "failed"}
    unfinished = [name for name, line in last.items() if line["outcome"] == "started"]
    outcomes = [line["outcome"] for line in last.values()]
    counts = {name: outcomes.count(name) for name in ("passed", "failed", "skipped")}
    counts["unfinished"] = len(unfinished)
    return {"tests": counts, "failed": failed, "unfinished": unfinished, "budget": budget}


def pytest_addoption(parser):
    parser.addoption("--outcomes", type=Path, help="append what each test came to")


def pytest_configure(config):
    path = config.getoption("outcomes")
    if path is not None and not hasattr(config, "workerinput"):
        path.parent.mkdir(parents=True, exist_ok=True)
        config.pluginmanager.register(_Writer(path))


class _Writer:
    """Hears of every test of every process."""

    def __init__(self, path: Path):
        self.path, self.phases = path, {}

    def pytest_runtest_logstart(self, nodeid):
        _append(self.path, {"test": nodeid, "outcome": "started"})

    def pytest_runtest_logreport(self, report):
        phases = self.phases.setdefault(report.nodeid, [])
        phases.append(report)
        if report.when not in ("setup", "call"):  # the last one, or pytest-xdist's of a process that died
            bad = next((each for each in phases if each.outcome != "passed"), None)
            line = {"test": report.nodeid, "outcome": "passed" if bad is None else bad.outcome}
            line["seconds"] = round(sum(each.duration for each in phases), 2)
            line |= {} if bad is None else {"reason": _reason(bad)}
            _append(self.path, line | dict(report.user_properties))

    def pytest_collectreport(self, report):
        if report.failed:
            _append(self.path, {"test": report.nodeid, "outcome": "failed", "reason": _reason(report)})


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    from diffratio_kernels.testing import budget  # not above: tests/conftest.py first chooses the interpreter

    new = {name: used for name, used in budget.worst.items() if used > _sent.get(name, -1.0)}
    _sent.update(new)
    if new:
        item.user_properties.append(("budget", {name: round(used, 3) for name, used in new.items()}))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.failed and hasattr(item.config, "workerinput") and not _device_answers():
        print(f"{item.nodeid}: the device is lost\n{report.longreprtext}", file=sys.stderr, flush=True)
        path = item.config.getoption("outcomes")
        if path is not None:
            _append(path, {"test": item.nodeid, "outcome": "failed", "reason": _reason(report)})
        os._exit(1)
    return report


def _device_answers() -> bool:
    import torch

    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def _reason(report) -> str:
    """One line: the message of the exception, the reason of a skip, or what pytest-xdist says."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return crash.message.splitlines()[0]
    text = report.longrepr[-1] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return (text.splitlines() or [""])[-1]


def _append(path: Path, line: dict) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
