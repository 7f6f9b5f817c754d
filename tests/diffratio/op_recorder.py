"""Stands in for the recorder of CUDA graphs on a CPU: records operators, and replays them on the same memory.

As in a CUDA graph, whatever was computed outside of the recording is a constant of the replay, and reading a
value while recording is an error, as is a tensor that is made of the host's numbers.
"""

import sys
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffratio.families import text_mask
from diffratio.routing import graphs, text_cache


class _Host(TorchFunctionMode):
    """What on a GPU would be a copy between it and the host. The package's own lists are of tensors of the
    CPU: on a GPU it takes other ways."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func in (torch.tensor, torch.as_tensor) and (kwargs or {}).get("device") is not None
        read = func in (torch.Tensor.tolist, torch.Tensor.numpy)
        if made or (read and "diffusers" in _caller()):
            raise RuntimeError(f"operation not permitted when stream is capturing ({func.__name__})")
        return func(*args, **(kwargs or {}))


def _caller() -> str:
    """The file that called torch, whatever modes of functions lie between."""
    frame = sys._getframe(2)
    while frame.f_code.co_name == "__torch_function__":
        frame = frame.f_back
    return frame.f_code.co_filename


class _Recording(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        results = func(*args, **(kwargs or {}))
        self.operators.append((func, args, kwargs or {}, results))
        return results


class OpRecorder:
    def __init__(self):
        self.recorded, self.replayed = 0, 0

    def install(self, monkeypatch):
        """Let `cuda_graphs` record here."""

        class Graphs(graphs._Graphs):
            device_type, record = "cpu", staticmethod(self.record)

            def __init__(self, model, shared):
                self._model, self._shared = model, shared

        monkeypatch.setattr(graphs, "_Graphs", Graphs)

    def record(self, run, inputs):
        run(*inputs)
        self.recorded += 1
        recording, capturing = _Recording(), mock.Mock(return_value=True)
        with (
            mock.patch.object(text_cache, "capturing", capturing),
            mock.patch.object(text_mask, "capturing", capturing),
            _Host(),
            recording,
        ):
            outputs = run(*inputs)

        def replay(*given):
            self.replayed += 1
            for buffer, tensor in zip(inputs, given, strict=True):
                buffer.copy_(tensor)
            for func, args, kwargs, results in recording.operators:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)
            return outputs

        for tensor in tree_leaves(outputs):
            tensor.fill_(float("nan"))  # a capture computes nothing
        return replay
