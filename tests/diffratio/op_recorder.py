"""Stands in for the recorder of CUDA graphs on a CPU: records operators, and replays them on the same memory.

As in a CUDA graph, whatever was computed outside of the recording is a constant of the replay, and reading a
value while recording is an error.
"""

from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffratio.families import text_mask
from diffratio.routing import graphs, text_cache


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
