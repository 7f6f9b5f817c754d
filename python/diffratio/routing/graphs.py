"""Sampling through CUDA graphs, without torch.compile."""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from .find import routed_model, transformer_of


class _Recorder:
    """All that needs a GPU."""

    device_type = "cuda"

    def __init__(self):
        if not torch.cuda.is_available():
            raise RuntimeError("cuda_graphs: no CUDA device here")
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Any], device: torch.device) -> tuple[Callable[[], None], Any]:
        """The replay of `run()`, and the tensors that a replay fills.

        Two runs before the capture, on its own stream, compile kernels and set libraries up.
        """
        with torch.cuda.device(device):
            stream, outside = torch.cuda.Stream(), torch.cuda.current_stream()
            stream.wait_stream(outside)
            with torch.cuda.stream(stream):
                for _ in range(2):
                    run()
            outside.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # The outer context is left also where the end of a failed capture raises.
            with torch.cuda.stream(stream), torch.cuda.graph(graph, pool=self._pool, stream=stream):
                outputs = run()
        return graph.replay, outputs


class _Graphs:
    """The graphs of one model, each made in the first call that needs it; it stands in for
    `model.forward`."""

    def __init__(self, model: nn.Module, shared, recorder):
        self._model, self._shared, self._recorder = model, shared, recorder
        self.invalidate()

    def __deepcopy__(self, memo):
        """A copy of the model has no graphs: its own class's forward."""
        model = memo[id(self._model)]
        return type(model).forward.__get__(model)

    def __len__(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)

    def invalidate(self) -> None:
        """Release every graph and buffer."""
        self._graphs: dict[tuple, tuple[Callable[[], None], list[Tensor], Any]] = {}

    def __call__(self, *args, **kwargs):
        self._check(kwargs.get("timestep"))
        leaves, tree = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        kind = self._recorder.device_type
        if {t.device.type for t in tensors} != {kind}:
            raise ValueError(f"cuda_graphs: all tensors that the model is given must be on one {kind} device")
        key = self._key(leaves, str(tree), kind)
        if key not in self._graphs:
            with torch.inference_mode(False), torch.no_grad():
                buffers = [t.clone() for t in tensors]
                places = iter(buffers)
                given = tree_unflatten([next(places) if isinstance(x, Tensor) else x for x in leaves], tree)
                replay, outputs = self._recorder.record(lambda: self._run(*given), buffers[0].device)
            self._graphs[key] = replay, buffers, outputs
        replay, buffers, outputs = self._graphs[key]
        for buffer, tensor in zip(buffers, tensors, strict=True):
            buffer.copy_(tensor)
        replay()
        return tree_map_only(Tensor, torch.clone, outputs)

    def _key(self, leaves: list, tree: str, kind: str) -> tuple:
        """All that a graph takes as it is: layouts, constants, kept counts, and where the weights lie."""
        layouts = [
            (x.shape, x.stride(), x.dtype, x.device) if isinstance(x, Tensor) else (type(x), x)
            for x in leaves
        ]
        tensors = *self._model.parameters(), *self._model.buffers()
        weights = [(t.data_ptr(), t.dtype, t.shape) for t in tensors]
        shared = self._shared
        settings, regions = (shared.enabled, shared.rescale.mode), shared.regions or [0]
        layers = [vars(m)["_diffratio"] for m in self._model.modules() if "_diffratio" in vars(m)]
        kept = [layer.kept_now()[region] for layer in layers for region in regions]
        autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        key = (tree, *layouts, *weights, *settings, *kept, autocast)
        try:
            hash(key)
        except TypeError as error:
            text = f"cuda_graphs: the model is given what is neither tensor nor constant ({error})"
            raise TypeError(text) from None
        return key

    def _check(self, timestep) -> None:
        shared = self._shared
        reasons = {
            "is called with gradients (use torch.no_grad)": torch.is_grad_enabled(),
            "is in training mode (call eval)": self._model.training,
            "is recorded by record_routing": shared.record is not None,
            "is inside of cache_text (a graph projects the text itself)": shared.text is not None,
        }
        for reason, holds in reasons.items():
            if holds:
                raise RuntimeError(f"cuda_graphs: the model {reason}")
        if isinstance(timestep, (int, float)):
            raise TypeError(f"timestep={timestep!r} must be a tensor inside of cuda_graphs")
        if len(shared.regions or ()) > 1:
            raise ValueError("timestep lies in several regions, and a CUDA graph is of one")

    def _run(self, args: tuple, kwargs: dict) -> Any:
        """The forward without autocast's copies of weights, which would not outlive the capture, and without
        what an earlier run found: in a graph that would be a constant."""
        self._shared.memo, cached = {}, torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            return type(self._model).forward(self._model, *args, **kwargs)
        finally:
            torch.set_autocast_cache_enabled(cached)


@contextmanager
def cuda_graphs(model_or_pipe):
    """Inside, calls of a routed transformer are captured into CUDA graphs, and replayed when they come again.

    One graph per kept counts of the layers (so per timestep region), per layout of the tensors and value of
    whatever else the model is given, and per autocast. A call copies its tensors into the graph's and the
    outputs out of it; the text is projected in every replay, and a timestep waited for once per call where
    there are several regions. Weights may change in place; where they are moved or replaced the next call
    captures anew. Other changes are not seen (hooks, processors, scales): leave the context to make them.

    One thread, one stream.

    Args:
        model_or_pipe: a routed model on one GPU, or a pipeline with one.

    Yields:
        What holds the graphs: `len()` of it, and `invalidate()` to release their memory before the end.

    Raises:
        ValueError: a model that is compiled as a whole or whose forward was replaced (offloading), tensors
            that are not on one GPU, or samples in several timestep regions.
        TypeError: an argument that is neither tensor nor constant, or a timestep that is no tensor.
        RuntimeError: a call with gradients, in training mode, inside of record_routing or of cache_text, or
            no GPU.

    Example:
        >>> apply_diffratio(model.to("cuda").eval(), DiffRatioConfig(compression=0.3))
        >>> on_gpu = {name: t.to("cuda") for name, t in inputs.items()}
        >>> with torch.no_grad(), cuda_graphs(model):
        ...     sample = model(latents.to("cuda"), **on_gpu).sample
    """
    given, model = getattr(model_or_pipe, "transformer", model_or_pipe), transformer_of(model_or_pipe)
    shared, forward = routed_model(model), vars(model).get("forward")
    if isinstance(forward, _Graphs):
        yield forward
        return
    if model._compiled_call_impl is not None or "_orig_mod" in given._modules:
        raise ValueError(f"model {type(model).__name__} is compiled as a whole; compile its blocks")
    if forward is not None and getattr(forward, "__func__", None) is not type(model).forward:
        name = type(model).__name__
        raise ValueError(f"model {name}: its forward was replaced, by offloading or another hook")
    model.forward = graphs = _Graphs(model, shared, _Recorder())
    try:
        yield graphs
    finally:
        take_graphs(model)
        graphs.invalidate()


def take_graphs(model: nn.Module) -> None:
    """Undo what `cuda_graphs` put on a model."""
    if isinstance(vars(model).get("forward"), _Graphs):
        del model.forward
