"""What a patched model remembers: plain objects that refer to no module but their own block, so that deepcopy
and PEFT's module copies stay small and independent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from .config import DiffRatioConfig


class SavedRouting:
    """The selections made in a forward pass that gradient checkpointing will run again, by block input."""

    def __init__(self):
        self._by_input = WeakTensorKeyDictionary()

    def __deepcopy__(self, memo) -> SavedRouting:
        return SavedRouting()

    def put(self, x: Tensor, index: Tensor, keep: list[int]) -> None:
        self._by_input[x] = (index, keep)

    def get(self, x: Tensor) -> tuple[Tensor, list[int]] | None:
        """The selection for this very input, if this is a recomputation inside a backward pass."""
        return self._by_input.get(x) if in_backward() else None


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
    packed: tuple[Tensor, Tensor | None] | None = None
    """qkv weight and bias that the block's own q, k and v parameters are views of."""
    saved: SavedRouting = field(default_factory=SavedRouting)
    tokens: int | None = None
    """N of the last call."""


@dataclass
class Plan:
    """One patched model."""

    config: DiffRatioConfig
    timestep_position: int
    """Where the model's forward takes `timestep`, counted without self."""
    layers: list[LayerState] = field(default_factory=list)
    enabled: bool = True
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

    def enter(self, timestep: Tensor | float | None) -> None:
        """Set every layer's kept tenths for the timesteps of a call: one read by the host, none per block."""
        regions = self.config.num_regions
        if regions == 1 and self.record is None:
            return
        self.timesteps = None
        if timestep is None:
            if regions == 1:
                return
            raise ValueError("timestep must be given to a model with diffratio regions")
        self.timesteps = timestep.flatten().tolist() if isinstance(timestep, Tensor) else [float(timestep)]
        if not all(math.isfinite(t) for t in self.timesteps):
            raise ValueError(f"timestep must be finite, got {self.timesteps}")
        inside = [min(max(int(t * regions // 1000), 0), regions - 1) for t in self.timesteps]
        if len(set(inside)) == 1:
            inside = inside[:1]
        for state in self.layers:
            state.tenths = [self.table[state.layer][region] for region in inside]
