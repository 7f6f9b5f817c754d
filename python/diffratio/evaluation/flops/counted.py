"""Counting by running: what a model of any family does in one forward, dense and routed.

Every operator that runs is noted with its FLOPs, by the formulas that torch's `FlopCounterMode` uses, with
the bytes that it must move and with the memory that is alive. On the meta device nothing is computed, so that
models of any size are counted in seconds; formulas of our own operators are in `diffratio_kernels.flops`.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

import diffratio_kernels.flops  # noqa: F401 - the formulas of our operators

from ...config import DiffRatioConfig
from ...routing.apply import remove_diffratio, route_blocks
from ...routing.find import routed_layers
from ...routing.state import RoutedLayer
from ..models import Draw, Preset, model_inputs

_GATHERS = {"gather_adaln", "index", "index_select", "gather", "embedding"}
"""Operators that read as much of what they gather from as they write."""
_NO_KERNEL = {
    "empty", "empty_like", "new_empty", "new_zeros", "_unsafe_view", "detach", "alias", "lift_fresh",
    "device",
}  # fmt: skip
_ON_A_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""Attention that torch's counter does not know."""


class Work(NamedTuple):
    """One run of an operator."""

    operator: str
    flops: int
    bytes: int
    """Each input read once and each output written once."""


@dataclass
class Count:
    """What a call did: every operator and how often it ran, and how much memory its results took."""

    work: Counter[Work] = field(default_factory=Counter)
    peak: int = 0
    """Bytes that were alive at once, beside what the call was given."""
    _alive: int = 0

    @property
    def flops(self) -> int:
        """Of matrix products, attention's included: a FLOP is half a multiply-accumulate."""
        return sum(times * work.flops for work, times in self.work.items())

    def parts(self) -> Counter[str]:
        """The FLOPs of attention, of routers and of all other products."""
        found = Counter()
        for work, times in self.work.items():
            part = "attention" if "attention" in work.operator else "products"
            found["router" if work.operator == "route" else part] += times * work.flops
        return +found

    def made(self, storage: torch.UntypedStorage) -> None:
        """Memory that is alive until it is let go."""
        self._alive += storage.nbytes()
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._freed, storage.nbytes()).atexit = False

    def _freed(self, size: int) -> None:
        self._alive -= size


class Counting:
    """Context: what runs inside is added to `count`."""

    def __init__(self):
        self.count, self.inside = Count(), False
        self._storages = WeakIdKeyDictionary()
        self._modes = ExitStack()

    def __enter__(self) -> Counting:
        self._modes.enter_context(_Attention(self))
        self._modes.enter_context(_Operators(self))
        return self

    def __exit__(self, *error) -> None:
        self._modes.close()

    def apart(self, call: Callable[[], Any]) -> tuple[Any, Count]:
        """What a call gives, and a count of its own, which is no part of `count`."""
        outer, self.count = self.count, Count()
        try:
            return call(), self.count
        finally:
            self.count = outer

    def note(self, name: str, flops: int, given: Any, out: Any) -> None:
        """Add one run of an operator."""
        given, results = ([t for t in tree_leaves(value) if isinstance(t, Tensor)] for value in (given, out))
        known = {id(t.untyped_storage()) for t in given}
        written = sum(map(_bytes, results))
        most = written if name in _GATHERS else math.inf
        self.count.work[Work(name, flops, written + sum(min(_bytes(t), most) for t in given))] += 1
        for storage in (t.untyped_storage() for t in results):
            if id(storage) not in known and storage not in self._storages:
                self._storages[storage] = None
                self.count.made(storage)


class _Operators(TorchDispatchMode):
    """Notes every operator below autograd."""

    def __init__(self, counting: Counting):
        super().__init__()
        self.counting = counting

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, packet, counting = kwargs or {}, func._overloadpacket, self.counting
        formula = _attention_flops if packet is _ON_A_CPU else flop_registry.get(packet)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        counting.inside = True
        try:
            out = func(*args, **kwargs)
        finally:
            counting.inside = False
        name = packet.__name__
        if not func.is_view and name not in _NO_KERNEL:
            flops = 0 if formula is None else formula(*args, **kwargs, out_val=out)
            counting.note(name, flops, (args, kwargs), out)
        return out


class _Attention(TorchFunctionMode):
    """torch's attention as the one operator that it is on a GPU; taken apart it would hold all pairs."""

    def __init__(self, counting: Counting):
        super().__init__()
        self.counting = counting

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention or self.counting.inside:
            return func(*args, **(kwargs or {}))
        return self._counted(*args, **(kwargs or {}))

    def _counted(self, query, key, value, attn_mask=None, *_, **__) -> Tensor:
        out = query.new_zeros(*query.shape[:-1], value.shape[-1])
        flops = _attention_flops(query, key, value)
        self.counting.note("attention", flops, (query, key, value, attn_mask), out)
        return out


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_, **__) -> int:
    return 2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _bytes(t: Tensor) -> int:
    """That a kernel touches of a tensor: of an expanded one what there is."""
    return min(t.numel() * t.element_size(), t.untyped_storage().nbytes())


@dataclass(frozen=True)
class Block:
    """Blocks that are alike: one class, parameters and inputs of the same shapes.

    Args:
        name: of their class.
        tokens: of each sample, that may be skipped.
        dense: the block as it is.
        kept: tenths that are kept -> what the routed block does.
    """

    name: str
    tokens: int
    dense: Count
    kept: Mapping[int, Count]


@dataclass(frozen=True)
class ModelCount:
    """What one forward of a model costs.

    Args:
        name: of its class.
        layers: the routed ones by name, in the order in which they are numbered.
        blocks: of every layer; those that are alike are the same object.
        outside: what is done outside of them: embeddings, blocks that stay dense, the output.
        weights: bytes of all parameters and buffers, without routers.
    """

    name: str
    layers: tuple[str, ...]
    blocks: tuple[Block, ...]
    outside: Count
    weights: int

    @property
    def tokens(self) -> int:
        """Of each sample, that may be skipped."""
        return self.blocks[0].tokens

    def parts(self, kept: int | list[list[int]] | None = None) -> dict[str, float]:
        """FLOPs by part.

        Args:
            kept: tenths of every layer, or a table [L][R] whose regions count equally; None: dense.
        """
        table = kept if isinstance(kept, list) else [[kept]] * len(self.blocks)
        found = Counter()
        for block, row in zip(self.blocks, table, strict=True):
            for tenths in row:
                count = block.dense if tenths is None else block.kept[tenths]
                for part, flops in count.parts().items():
                    found[f"{block.name}, {part}"] += flops / len(row)
        return {**found, "outside of the blocks": self.outside.flops}

    def flops(self, kept: int | list[list[int]] | None = None) -> float:
        """Of one forward of the whole batch; kept as in `parts`."""
        return sum(self.parts(kept).values())

    def peak(self, kept: list[list[int]] | None = None) -> int:
        """Bytes of the block that takes most at once, beside weights and what it is given."""
        table = kept or [[None]] * len(self.blocks)
        counts = (b.dense if n is None else b.kept[n] for b, row in zip(self.blocks, table, strict=True)
                  for n in row)  # fmt: skip
        return max(count.peak for count in counts)


def count_model(model: nn.Module, inputs: Mapping[str, Any], tenths: Iterable[int] = range(11)) -> ModelCount:
    """Count one forward of a model of any family, dense and with so many tenths of the tokens kept.

    Blocks that are alike are run once. The model is routed for the count, and is as before afterwards. What
    modules compute is not to be used: torch's attention gives zeros. On the meta device what needs values
    (references among the tokens, ragged samples) is not seen.

    Args:
        model: a diffusers transformer that is not routed; on the meta device it takes no memory.
        inputs: arguments of its forward, by name, on its device.
        tenths: kept tenths that are counted, 0 to 10.

    Raises:
        ValueError: no block of the model can be routed, or it is routed already.

    Example:
        >>> preset = PRESETS["flux.1-dev-1024"]
        >>> model = preset.make()
        >>> count = count_model(model, model_inputs(model, preset.size, Draw()), [5])
        >>> share = count.flops(5) / count.flops()
    """
    if "_diffratio_model" in vars(model):
        raise ValueError(f"model: {type(model).__name__} is routed; count it before apply_diffratio")
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    counting, found = Counting(), _Found(sorted({*tenths}))
    route_blocks(model, DiffRatioConfig(0.0))
    layers = routed_layers(model)
    forwards = [layer.block.forward for layer in layers]
    try:
        for layer, forward in zip(layers, forwards, strict=True):
            layer.block.forward = partial(found.run, counting, layer, forward)
        with torch.no_grad(), counting:
            model(**inputs)
    finally:
        for layer, forward in zip(layers, forwards, strict=True):
            layer.block.forward = forward
        remove_diffratio(model)
    names = tuple(layer.name for layer in layers)
    blocks = tuple(found.blocks[layer.number] for layer in layers)
    return ModelCount(type(model).__name__, names, blocks, counting.count, weights)


def count_preset(preset: Preset, tenths: Iterable[int] = range(11)) -> ModelCount:
    """`count_model` of a preset, on the meta device.

    Example:
        >>> count = count_preset(PRESETS["wan-1.3b-480p"].resized(batch=2), [7])
    """
    model = preset.make()
    return count_model(model, model_inputs(model, preset.size, Draw()), tenths)


class _Found:
    """The blocks of a model by their number."""

    def __init__(self, tenths: list[int]):
        self.tenths, self.blocks = tenths, {}
        self._known: dict[tuple, tuple[Block, Any]] = {}

    def run(self, counting: Counting, layer: RoutedLayer, routed: Callable, *args, **kwargs) -> Any:
        """A block's forward: the first one of its kind is counted, others give what that gave."""
        weights = tuple((name, _shape(p)) for name, p in layer.block.named_parameters())
        kind = type(layer.block), weights, tuple(map(_shape, tree_leaves((args, kwargs))))
        if kind not in self._known:
            out, dense = counting.apart(partial(layer.dense_forward, *args, **kwargs))
            counting.apart(partial(routed, *args, **kwargs))  # makes what the blocks of a call share
            kept = {}
            for n in self.tenths:
                layer.kept = [n]
                _, kept[n] = counting.apart(partial(routed, *args, **kwargs))
            self._known[kind] = Block(type(layer.block).__name__, layer.tokens, dense, kept), out
        block, out = self._known[kind]
        self.blocks[layer.number] = block
        return out


def _shape(value: Any) -> Any:
    """What tells one input from another."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    return value if isinstance(value, (int, float, str, type(None))) else type(value)
