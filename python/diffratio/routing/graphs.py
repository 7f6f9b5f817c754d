"""Sampling through CUDA graphs, without torch.compile."""

from collections.abc import Callable, Hashable
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from .find import routed_blocks, routed_model, unwrapped


class _Graphs(dict):
    """The graphs of one model, by all that they take as it is. They stand in for `model.forward`."""

    device_type, invalidate = "cuda", dict.clear

    def __init__(self, model, shared):
        if not torch.cuda.is_available():
            raise RuntimeError("cuda_graphs: no CUDA device here")
        self._model, self._shared, self._pool = model, shared, torch.cuda.graph_pool_handle()

    def record(self, run: Callable, inputs: tuple[Tensor, ...]) -> Callable:
        """`run` as a graph that takes tensors like `inputs`; two runs before the capture compile kernels."""
        device = inputs[0].device
        if getattr(torch.cuda.graph.default_capture_stream, "device", device) != device:  # of the first GPU
            torch.cuda.graph.default_capture_stream = None
        with torch.cuda.stream(torch.cuda.current_stream(device)):  # so too after a failed capture
            return torch.cuda.make_graphed_callables(run, inputs, num_warmup_iters=2, pool=self._pool)

    def __deepcopy__(self, memo):
        return type(self._model).forward.__get__(memo[id(self._model)])  # a copy of the model has no graphs

    def __call__(self, *args, **kwargs):
        model, shared, kind = self._model, self._shared, self.device_type
        leaves, tree = tree_flatten((args, kwargs, shared.told))
        inputs = tuple(x for x in leaves if isinstance(x, Tensor))
        self._check(leaves, inputs, kwargs.get("timestep"), kind)

        def run(*buffers: Tensor):
            places, shared.memo = iter(buffers), {}  # what an earlier run found would be a constant
            given = tree_unflatten([next(places) if isinstance(x, Tensor) else x for x in leaves], tree)
            shared.told = given[2]
            return type(model).forward(model, *given[0], **given[1])

        layouts = [(x.shape, x.stride(), x.dtype, x.device) for x in inputs]
        constants = [(type(x), None if isinstance(x, Tensor) else x) for x in leaves]
        weights = [(t.data_ptr(), t.dtype, t.shape) for t in (*model.parameters(), *model.buffers())]
        kept = [b._diffratio.kept_now()[r] for b in routed_blocks(model) for r in shared.regions or [0]]
        autocast = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        settings = shared.enabled, shared.rescale.mode, shared.config.rounding
        key = *layouts, *constants, *weights, *kept, str(tree), *autocast, *settings
        if key not in self:  # autocast's cached weights would not outlive the capture
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(kind, *autocast, False):
                self[key] = self.record(run, tuple(x.clone() for x in inputs))
        return tree_map_only(Tensor, torch.clone, self[key](*inputs))

    def _check(self, leaves: list, inputs: tuple[Tensor, ...], timestep, kind: str) -> None:
        reasons = {
            "called with gradients (use torch.no_grad)": torch.is_grad_enabled(),
            "in training mode (call eval)": self._model.training,
            "recorded by record_routing": self._shared.record is not None,
            "inside of cache_text (a graph projects the text itself)": self._shared.text is not None,
        }
        if any(reasons.values()):
            raise RuntimeError(f"cuda_graphs: the model is {next(filter(reasons.get, reasons))}")
        if isinstance(timestep, (int, float)):
            raise TypeError(f"timestep={timestep!r} must be a tensor inside of cuda_graphs")
        if len(self._shared.regions or ()) > 1:
            raise ValueError("timestep lies in several regions, and a CUDA graph is of one")
        if odd := [type(x).__name__ for x in leaves if not isinstance(x, Hashable)]:
            raise TypeError(f"cuda_graphs: the model is given what is neither tensor nor constant ({odd[0]})")
        if {x.device.type for x in inputs} != {kind}:
            raise ValueError(f"cuda_graphs: all tensors that the model is given must be on one {kind} device")


@contextmanager
def cuda_graphs(model_or_pipe):
    """Inside, calls of a routed transformer are captured into CUDA graphs, and replayed when they come again.

    One graph per kept counts (so per timestep region), layout of tensors, value of other arguments, and
    autocast. The text is projected in every replay; several regions wait for the timestep. Weights may change
    in place; moved or replaced ones are captured anew. Leave the context for other changes: it does not see
    hooks, processors and scales. One thread, one stream.

    Args:
        model_or_pipe: a routed model on one GPU, or a pipeline with one.

    Yields:
        What holds the graphs: `len()` of it, and `invalidate()` to release their memory before the end.

    Raises:
        ValueError, TypeError, RuntimeError: a model that is compiled as a whole or offloaded, a call with
            gradients, in training mode, inside of record_routing or cache_text or in several regions, an
            argument that is neither tensor on the GPU nor constant, or no GPU.

    Example:
        >>> apply_diffratio(model.to("cuda").eval(), DiffRatioConfig(compression=0.3))
        >>> on_gpu = {name: t.to("cuda") for name, t in inputs.items()}
        >>> with torch.no_grad(), cuda_graphs(model):
        ...     sample = model(latents.to("cuda"), **on_gpu).sample
    """
    model, wrappers = unwrapped(model_or_pipe)
    shared, forward, name = routed_model(model), vars(model).get("forward"), type(model).__name__
    if isinstance(forward, _Graphs):
        yield forward
        return
    if model._compiled_call_impl is not None or any("_orig_mod" in w._modules for w in wrappers):
        raise ValueError(f"model {name} is compiled as a whole; compile its blocks")
    if forward is not None and getattr(forward, "__func__", None) is not type(model).forward:
        raise ValueError(f"model {name}: its forward was replaced, by offloading or another hook")
    model.forward = _Graphs(model, shared)
    try:
        yield model.forward
    finally:
        take_graphs(model)


def take_graphs(model) -> None:
    """Undo what `cuda_graphs` put on a model."""
    if isinstance(vars(model).get("forward"), _Graphs):
        vars(model).pop("forward").clear()
