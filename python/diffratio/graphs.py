"""Sampling through CUDA graphs, without torch.compile."""

from __future__ import annotations

from contextlib import contextmanager

from . import model_graphs
from .model_graphs import ModelGraphs, graphs_of, put_graphs, take_graphs
from .patch import plan_of, transformer_of


@contextmanager
def cuda_graphs(model_or_pipe):
    """Inside, calls of a routed transformer are captured into CUDA graphs, and replayed when they come again.

    One graph per kept counts of the layers (so per timestep region), per layout of the tensors and value of
    whatever else the model is given, and per autocast. A call copies its tensors into the graph's and the
    outputs out of it. The text is projected in every replay; a new text mask is waited for once, and a
    timestep once per call where there are several regions. Weights may change in place; weights and modules
    that are replaced or moved void all graphs, and the next call captures anew. Other changes are not seen
    (hooks, processors, scales, weights behind a hook): leave the context to make them.

    Yields what holds the graphs: `len()` of it, and `clear()` to release their memory before the end. One
    thread, one stream.

    Raises:
        ValueError: a model that is compiled as a whole or whose forward was replaced (offloading), tensors
            that are not on one GPU, or samples in several timestep regions.
        TypeError: an argument that is neither tensor nor constant, or a timestep that is no tensor.
        RuntimeError: a call with gradients, in training mode, inside of record_routing or of cache_text, or
            no GPU.
    """
    given, model = getattr(model_or_pipe, "transformer", model_or_pipe), transformer_of(model_or_pipe)
    plan = plan_of(model)
    outer = graphs_of(model)
    if outer is not None:
        yield outer
        return
    take_graphs(model)
    if model._compiled_call_impl is not None or "_orig_mod" in given._modules:
        raise ValueError(f"model {type(model).__name__} is compiled as a whole; compile its blocks")
    forward = vars(model).get("forward")
    if forward is not None and getattr(forward, "__func__", None) is not type(model).forward:
        raise ValueError(
            f"model {type(model).__name__}: its forward was replaced, by offloading or another hook"
        )
    graphs = ModelGraphs(model, plan, model_graphs.CudaRecorder())
    put_graphs(model, graphs)
    try:
        yield graphs
    finally:
        take_graphs(model)
        graphs.clear()
