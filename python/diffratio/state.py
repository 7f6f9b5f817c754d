"""What a patched model remembers: plain objects that refer to no module but their own block and table, so
that deepcopy, pickle and PEFT's module copies stay small and independent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MethodType

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from diffratio_kernels.modules import RatioTable

from .config import DiffRatioConfig
from .integrations.model_text import ModelText
from .integrations.text_cache import TextCache
from .next_logits import NextLogits

TIMESTEP_UNITS = {"training": 1000, "noise": 1}
"""The end of a model's timesteps: training timesteps 0..999, or noise levels in [0, 1] (flow families)."""


def region(timestep: float, regions: int, units: str = "training") -> int:
    """The region 0..regions-1 (0 the cleanest) of a timestep; R regions of equal width (paper section 3.4).

    A noise level that is a float32 below the edge of its region (0.7 is 0.69999999) belongs to it.
    """
    slack = 1e-6 if units == "noise" else 0.0
    position = timestep * regions * (1 + slack) // TIMESTEP_UNITS[units]
    return min(max(int(position), 0), regions - 1)


class SavedRouting:
    """The selections made in a forward pass that gradient checkpointing will run again, by block input.

    Checkpointing keeps the memory of an input but not always the tensor: re-entrant checkpointing detaches
    it, and FSDP hands every call of a block an alias of its own.
    """

    def __init__(self):
        self._by_input = WeakIdKeyDictionary()
        """Storage -> place in it -> decision; gone when the memory is released."""

    def __reduce__(self):
        """A copy, pickled or not, has other inputs to come."""
        return SavedRouting, ()

    def put(self, x: Tensor, *decision) -> None:
        self._by_input.setdefault(x.untyped_storage(), {})[_place(x)] = decision

    def get(self, x: Tensor) -> tuple | None:
        """The decision for this very input, if this is a recomputation inside a backward pass."""
        return self._by_input.get(x.untyped_storage(), {}).get(_place(x)) if in_backward() else None


def _place(x: Tensor) -> tuple:
    return x.storage_offset(), x.shape, x.stride()


class Routing:
    """One recorded selection: `index` [T] holds rows of the flattened [B*N], `shape` is (B, N)."""

    def __init__(self, layer: int, timesteps: list[float] | None, index: Tensor, shape: tuple[int, int]):
        self.layer, self.index, self.shape = layer, index, shape
        self.timestep = None if not timesteps or len(set(timesteps)) > 1 else timesteps[0]
        self.timesteps = timesteps

    def kept(self) -> Tensor:
        """[B, N] bool: which tokens were kept."""
        mask = torch.zeros(self.shape[0] * self.shape[1], dtype=torch.bool, device=self.index.device)
        return mask.index_fill(0, self.index, True).view(self.shape)


def in_backward() -> bool:
    """Whether the autograd engine is running on this thread: a forward now is a recomputation."""
    return torch._C._current_graph_task_id() != -1


@dataclass
class LayerState:
    """One routed block."""

    block: nn.Module = field(repr=False)
    dense_forward: Callable = field(repr=False)
    """The bound forward of the block; dynamo cannot trace it through `type(block)` in diffusers."""
    layer: int
    name: str
    spec: object
    plan: Plan
    tenths: list[int]
    """Kept tenths of the current call, one for all samples or one per sample."""
    saved: SavedRouting = field(default_factory=SavedRouting)
    text_cache: TextCache | None = None
    """Keys and values of the text, inside of `cache_text`."""
    tokens: int | None = None
    """N of the last call."""
    drawn: Tensor | None = None
    """The router's weight as it was drawn, on the CPU; None for one that was loaded."""

    @property
    def untrained(self) -> bool:
        """Whether the router is as it was drawn, by value: whatever trains or loads it changes that.

        False where the values cannot be seen: on the meta device, in shards.
        """
        weight = self.block.diffratio.router_weight.detach()
        if self.drawn is None or weight.is_meta or type(weight) is not Tensor:
            return False
        return torch.equal(self.drawn.to(weight), weight)

    def __getstate__(self):
        """Without the dense forward: a bound method is kept by its name, which leads to the routed one."""
        return self.__dict__ | {"dense_forward": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, dense_forward=MethodType(type(state["block"]).forward, state["block"]))

    def record(self, x: Tensor, index: Tensor) -> None:
        """Record a selection where that is asked for."""
        if self.plan.record is not None:
            self.plan.record.append(Routing(self.layer, self.plan.timesteps, index, tuple(x.shape[:2])))


@dataclass
class Plan:
    """One patched model."""

    config: DiffRatioConfig
    timestep_position: int
    """Where the model's forward takes `timestep`, counted without self."""
    layers: list[LayerState] = field(default_factory=list)
    enabled: bool = True
    units: str = "training"
    """Of the model's timesteps, a name in `TIMESTEP_UNITS`."""
    ratios: RatioTable | None = None
    """The model's `diffratio_ratios` while it learns them."""
    regions: list[int] = field(default_factory=lambda: [0])
    """Of the current call, one for all samples or one per sample."""
    text: ModelText | None = None
    """Inside of `cache_text`."""
    next_logits: NextLogits = field(default_factory=NextLogits)
    record: list | None = None
    """Where `record_routing` collects, None outside of it."""
    timesteps: list[float] | None = None
    """Of the current call, on the host; read only where regions or a recording need them."""

    def __post_init__(self):
        self.table: list[list[int]] = []

    def set_table(self, config: DiffRatioConfig, layers: int) -> None:
        """Take the kept tenths [L][R] from a config, starting in region 0."""
        self.config, self.table = config, config.kept_tenths(layers)
        for state in self.layers:
            state.tenths = [self.table[state.layer][0]]

    def forget_text(self) -> None:
        """Release what `cache_text` has kept so far."""
        for cache in (self.text, *(state.text_cache for state in self.layers)):
            if cache is not None:
                cache.clear()

    def enter(self, timestep: Tensor | float | None) -> None:
        """Set every layer's kept tenths for the timesteps of a call: one read by the host, none per block."""
        regions = self.config.num_regions
        if self.ratios is not None:
            self.table = self.ratios.nearest()
        elif regions == 1 and self.record is None:
            return
        self.timesteps = None
        self.regions = [0] if regions == 1 and self.record is None else self._regions(timestep)
        for state in self.layers:
            state.tenths = [self.table[state.layer][region] for region in self.regions]

    def _regions(self, timestep: Tensor | float | None) -> list[int]:
        regions = self.config.num_regions
        if timestep is None:
            if regions == 1:
                return [0]
            raise ValueError("timestep must be given to a model with diffratio regions")
        self.timesteps = timestep.flatten().tolist() if isinstance(timestep, Tensor) else [float(timestep)]
        if not all(math.isfinite(t) for t in self.timesteps):
            raise ValueError(f"timestep must be finite, got {self.timesteps}")
        inside = [region(t, regions, self.units) for t in self.timesteps]
        return inside[:1] if len(set(inside)) == 1 else inside
