"""Which kernels the libraries of this process run on, in their own words.

As a script it prints them after a calculation in each library; as a pytest plugin
(`-p tools.portable.proof`) it adds a line to the file PORTABLE_PROOF for every process that ran tests, after
its last test.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import tempfile
from collections.abc import Callable


def in_effect() -> dict[str, str]:
    """OpenBLAS: core types. torch: CPU capability. threads: every count. oneDNN, MKL: instruction set."""
    # Not at the top: the process of pytest-xdist that hands out the tests has no use for these seconds.
    import numpy
    import torch
    from threadpoolctl import threadpool_info

    matrix = numpy.ones((64, 64), numpy.float32)
    assert (matrix @ matrix == 64).all()
    said = _printed(_use_mkl_and_onednn)
    pools = threadpool_info()
    cores = {pool["architecture"] for pool in pools if pool["internal_api"] == "openblas"}
    counts = {pool["num_threads"] for pool in pools} | {torch.get_num_threads()}
    return {
        "OpenBLAS": " and ".join(sorted(cores)),
        "torch": torch.backends.cpu.get_cpu_capability(),
        "threads": " and ".join(map(str, sorted(counts))),
        "oneDNN": _first(r"onednn_verbose.*,cpu,isa:(.*)", said),
        "MKL": _first(r"MKL_VERBOSE .*?\(Intel\(R\) (AVX[-\w]*)\)", said),
    }


def _use_mkl_and_onednn() -> None:
    """A product by MKL, a copy by oneDNN (whose products torch takes for some dtypes and processors only)."""
    import torch
    from torch.backends import mkl, mkldnn

    x = torch.ones(64, 64)
    with mkl.verbose(mkl.VERBOSE_ON), mkldnn.verbose(mkldnn.VERBOSE_ON):
        assert ((x @ x).exp().log() - 64).abs().max() < 1e-3
        assert torch.equal(x.to_mkldnn().to_dense(), x)


def _printed(work: Callable[[], None]) -> str:
    """What C libraries print meanwhile."""
    flush, stdout = ctypes.CDLL(None).fflush, os.dup(1)
    with tempfile.TemporaryFile("w+") as file:
        flush(None)
        os.dup2(file.fileno(), 1)
        try:
            work()
        finally:
            flush(None)
            os.dup2(stdout, 1)
            os.close(stdout)
        file.seek(0)
        return file.read()


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1].strip() if found else "not named"


def pytest_sessionfinish(session):
    if session.config.pluginmanager.hasplugin("dsession"):
        return  # the controller of pytest-xdist runs no tests
    with open(os.environ["PORTABLE_PROOF"], "a") as file:
        file.write(json.dumps(in_effect()) + "\n")


if __name__ == "__main__":
    print(json.dumps(in_effect()))
