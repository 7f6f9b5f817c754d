"""Sampling through CUDA graphs, without torch.compile."""

from collections.abc import Callable, Hashable
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from .find import routed_blocks, routed_model, unwrapped

_HANDED = {torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.to, torch.Tensor.cuda}
_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
_PLACES = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}
_DYNAMIC = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class _Constants(TorchFunctionMode):
    """What runs hand from the host to the device, by value: once, then copied there. A graph cannot wait for
    the host, and all that the host computes is a part of the graph's key."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.noted = kind, {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        there = args and isinstance(args[0], Tensor) and args[0].device.type == self.kind
        if there or func not in _HANDED:
            return func(*args, **(kwargs or {}))
        key = func, *map(_value, tree_leaves((args, kwargs)))
        if key not in self.noted:
            self.noted[key] = func(*args, **(kwargs or {}))
        return self.noted[key].clone()


def _value(x) -> Hashable:
    """What tells an argument of the host from another one."""
    if not isinstance(x, Tensor) or x.device.type != "cpu":
        return repr(x) if isinstance(x, float) else x if isinstance(x, Hashable) else id(x)
    return x.dtype, x.shape, x.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


class _Watched(TorchDispatchMode):
    """A RuntimeError where a run of a model waits for values of the device, as no graph can."""

    def __init__(self, model, kind: str):
        super().__init__()
        self.name, self.kind = type(model).__name__, kind

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        there = {x.device.type == self.kind for x in (*tree_leaves(args), out) if isinstance(x, Tensor)}
        waits = bool(_DYNAMIC & {*func.tags})
        if func in _PLACES:  # by a mask; one value for all that it marks needs no count of them
            masks = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
            waits = masks and (len(args) == 2 or args[2].numel() > 1)
        if len(there) > 1 if func in _COPIES else waits and True in there:
            where = f"its forward waits for values on the GPU ({func})"
            raise RuntimeError(f"cuda_graphs: no graph can hold {self.name}: {where}")
        return out


class _Graphs(dict):
    """The graphs of one model, by all that they take as it is. They stand in for `model.forward`."""

    device_type, invalidate = "cuda", dict.clear

    def __init__(self, model, shared):
        if not torch.cuda.is_available():
            raise RuntimeError("cuda_graphs: no CUDA device here")
        self._model, self._shared, self._pool = model, shared, torch.cuda.graph_pool_handle()

    def record(self, run: Callable, inputs: tuple[Tensor, ...]) -> Callable:
        """`run` as a graph that takes tensors like `inputs`."""
        device = inputs[0].device
        if getattr(torch.cuda.graph.default_capture_stream, "device", device) != device:  # of the first GPU
            torch.cuda.graph.default_capture_stream = None
        with torch.cuda.stream(torch.cuda.current_stream(device)):  # so too after a failed capture
            return torch.cuda.make_graphed_callables(run, inputs, num_warmup_iters=1, pool=self._pool)

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
                self[key] = self._recorded(run, tuple(x.clone() for x in inputs))
        return tree_map_only(Tensor, torch.clone, self[key][0](*inputs))

    def _recorded(self, run: Callable, inputs: tuple[Tensor, ...]) -> tuple[Callable, _Constants | None]:
        """The graph of `run`, and what it reads besides weights and inputs."""
        if any(module._compiled_call_impl is not None for module in self._model.modules()):
            return self.record(run, inputs), None  # they would be compiled again, to be looked into
        constants = _Constants(self.device_type)

        def settled(*buffers: Tensor):
            with constants:
                return run(*buffers)

        settled(*inputs)  # compiles kernels, and fills caches of the model's own
        with _Watched(self._model, self.device_type):
            settled(*inputs)
        return self.record(settled, inputs), constants

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
    hooks, processors and scales. One thread, one stream. A forward that waits for values on the GPU is
    refused (docs/supported-models.md has which).

    Args:
        model_or_pipe: a routed model on one GPU, or a pipeline with one.

    Yields:
        What holds the graphs: `len()` of it, and `invalidate()` to release their memory before the end.

    Raises:
        ValueError, TypeError, RuntimeError: a model that is compiled as a whole or offloaded, a call with
            gradients, in training mode, inside of record_routing or cache_text or in several regions, an
            argument that is neither tensor on the GPU nor constant, a forward that waits, or no GPU.

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
