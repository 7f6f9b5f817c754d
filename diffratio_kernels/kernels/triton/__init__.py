"""Launchers of the Triton kernels: tensors in, tensors out. Triton itself is imported at the first launch.

They run on CUDA, and on CPU tensors where TRITON_INTERPRET=1 was set before Triton was imported.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

unavailable = None if importlib.util.find_spec("triton") else "triton is not installed"
"""None where the kernels can be compiled, else why not."""

_MODULE = {
    "router_logits_backward": "router_logits",
    "adaln": "gather_adaln",
    "adaln_backward": "gather_adaln_backward",
    "gate_residual_backward": "gate_residual",
    "linear_gelu_backward": "linear_gelu",
    "scatter_rescale_": "scatter_rescale",
}


def launcher(name: str) -> Callable:
    """The launcher `name`, imported at its first call: from the module of its name, or as listed above."""

    def call(*args, **kwargs):
        module = importlib.import_module(f".{_MODULE.get(name, name)}", __name__)
        return getattr(module, name)(*args, **kwargs)

    return call
