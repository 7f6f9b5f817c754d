"""A patched model's calls as CUDA graphs: which graph serves a call, its buffers, and when it is void."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from .integrations.text_mask import TextMask, fix_text_lengths, pixart_mask, text_lengths
from .state import Plan


class CudaRecorder:
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


class _Places:
    """The modules of a model and where its tensors lie, which a graph takes as they were."""

    def __init__(self, model: nn.Module):
        self._modules = [(module, dict(module._modules)) for module in model.modules()]
        self._holders = [
            (holder, {name: (t, _place(t)) for name, t in holder.items() if t is not None})
            for module, _ in self._modules
            for holder in (module._parameters, module._buffers)
        ]

    def unchanged(self) -> bool:
        return all(module._modules == children for module, children in self._modules) and all(
            sum(t is not None for t in holder.values()) == len(known)
            and all(holder.get(name) is t and _place(t) == place for name, (t, place) in known.items())
            for holder, known in self._holders
        )


def _place(tensor: Tensor) -> tuple:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


@dataclass(eq=False)
class _Call:
    """The arguments of one call: its tensors, and what a graph takes of the arguments as they are."""

    leaves: list
    tree: Any
    tensors: list[Tensor]
    mask: int | None
    """The text mask's place in `tensors`, if the two last of them are its `text_lengths`."""
    signature: tuple

    def with_tensors(self, tensors: list[Tensor]) -> tuple[tuple, dict]:
        """The arguments, of other tensors."""
        others = iter(tensors)
        leaves = [next(others) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return tree_unflatten(leaves, self.tree)


def _bind(args: tuple, kwargs: dict, mask: Tensor | None, device_type: str) -> _Call:
    leaves, tree = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    place, known = None, None
    if mask is not None:
        place, known = (
            [tensor is mask for tensor in tensors].index(True),
            text_lengths(mask, comes_again=True),
        )
    if known is not None:
        tensors += known
    devices = {tensor.device for tensor in tensors}
    if len(devices) != 1 or tensors[0].device.type != device_type:
        raise ValueError(
            f"cuda_graphs: all tensors that the model is given must be on one {device_type} device, "
            f"got {sorted(map(str, devices))}"
        )
    layouts = [(tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors]
    values = [(type(leaf), leaf) for leaf in leaves if not isinstance(leaf, Tensor)]
    for kind, leaf in values:
        if kind.__hash__ is None:
            raise TypeError(f"cuda_graphs: the model is given {leaf!r}, neither a tensor nor a constant")
    autocast = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    signature = (*layouts, *values, str(tree), autocast)
    return _Call(leaves, tree, tensors, None if known is None else place, signature)


class ModelGraphs:
    """The graphs of one model, each made in the first call that needs it.

    Graphs of one shape share their input buffers, and all of them one memory pool: outputs are copied out.
    """

    def __init__(self, model: nn.Module, plan: Plan, recorder: CudaRecorder):
        self._model, self._plan, self._recorder = model, plan, recorder
        self._mask = TextMask()
        self.clear()

    def __reduce__(self):
        return type(None), ()

    def __len__(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)

    def clear(self) -> None:
        """Release every graph and buffer."""
        self._graphs: dict[tuple, tuple[Callable[[], None], Any]] = {}
        self._buffers: dict[tuple, list[Tensor]] = {}
        self._places: _Places | None = None

    def __call__(self, *args, **kwargs):
        """What the model's own forward returns for arguments of `forward`."""
        kept = self._checked(args, kwargs)
        args, kwargs = self._mask.arguments(self._model, args, kwargs) or (args, kwargs)
        mask = pixart_mask(self._model, args, kwargs)
        call = _bind(args, kwargs, mask, self._recorder.device_type)
        if self._places is not None and not self._places.unchanged():
            self.clear()
        with torch.inference_mode(False), torch.no_grad():
            buffers = self._filled_buffers(call)
            key = (call.signature, kept)
            if key not in self._graphs:
                self._places = self._places or _Places(self._model)
                self._graphs[key] = self._recorder.record(
                    lambda: self._run(*call.with_tensors(buffers)), buffers[0].device
                )
        replay, outputs = self._graphs[key]
        replay()
        return tree_map_only(Tensor, torch.clone, outputs)

    def _checked(self, args: tuple, kwargs: dict) -> tuple:
        """What a call depends on besides its arguments, if it can be a graph."""
        plan = self._plan
        reasons = {
            "is called with gradients (use torch.no_grad)": torch.is_grad_enabled(),
            "is in training mode (call eval)": self._model.training,
            "is recorded by record_routing": plan.record is not None,
            "is inside of cache_text (a graph projects the text itself)": plan.text is not None,
        }
        for reason, holds in reasons.items():
            if holds:
                raise RuntimeError(f"cuda_graphs: the model {reason}")
        position = plan.timestep_position
        timestep = kwargs.get("timestep", args[position] if 0 <= position < len(args) else None)
        if isinstance(timestep, (int, float)):
            raise TypeError(f"timestep={timestep!r} must be a tensor inside of cuda_graphs")
        if any(len(state.tenths) > 1 for state in plan.layers):
            raise ValueError("timestep lies in several regions, and a CUDA graph is of one")
        return plan.enabled, plan.config.rescale, *(state.tenths[0] for state in plan.layers)

    def _filled_buffers(self, call: _Call) -> list[Tensor]:
        if call.signature not in self._buffers:
            buffers = [torch.empty_like(tensor) for tensor in call.tensors]
            self._buffers[call.signature] = buffers
            if call.mask is not None:
                fix_text_lengths(buffers[call.mask], *buffers[-2:])
        buffers = self._buffers[call.signature]
        for buffer, tensor in zip(buffers, call.tensors, strict=True):
            buffer.copy_(tensor)
        return buffers

    def _run(self, args: tuple, kwargs: dict) -> Any:
        """The forward without autocast's copies of weights, which would not outlive the capture."""
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            return type(self._model).forward(self._model, *args, **kwargs)
        finally:
            torch.set_autocast_cache_enabled(cached)


@dataclass(eq=False)
class _Graphed:
    """Stands in for `model.forward`; a copy of the model has no graphs."""

    model: nn.Module
    graphs: ModelGraphs | None


def _graphed_forward(graphed: _Graphed, *args, **kwargs):
    if graphed.graphs is None:
        return type(graphed.model).forward(graphed.model, *args, **kwargs)
    return graphed.graphs(*args, **kwargs)


_Graphed._graphed_forward = _graphed_forward  # a bound method is pickled by its name


def put_graphs(model: nn.Module, graphs: ModelGraphs) -> None:
    """Let calls of the model go through its graphs."""
    model.forward = MethodType(_graphed_forward, _Graphed(model, graphs))


def graphs_of(model: nn.Module) -> ModelGraphs | None:
    """What `put_graphs` put on a model, None for others and for copies."""
    forward = vars(model).get("forward")
    return forward.__self__.graphs if getattr(forward, "__func__", None) is _graphed_forward else None


def take_graphs(model: nn.Module) -> None:
    """Undo `put_graphs`, also on a copy."""
    if getattr(vars(model).get("forward"), "__func__", None) is _graphed_forward:
        del model.forward
