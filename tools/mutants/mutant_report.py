"""pytest plugin: writes to MUTANT_REPORT which test runs, which fails, and where the package came from."""

import json
import os
import sys
from pathlib import Path


def _write(**line) -> None:
    with Path(os.environ["MUTANT_REPORT"]).open("a") as report:
        report.write(json.dumps(line) + "\n")


def pytest_runtest_logstart(nodeid):
    _write(started=nodeid)


def pytest_runtest_logreport(report):
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        _write(failed=report.nodeid, phase=report.when, message=crash.message if crash else "")


def pytest_collection_finish():
    _write(imported=_package_files())


def pytest_sessionfinish(exitstatus):
    _write(finished=int(exitstatus), imported=_package_files())


def _package_files() -> list[str]:
    planted_in = ("diffratio_kernels", "tools")
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] in planted_in]
    return [module.__file__ for module in modules if getattr(module, "__file__", None)]
