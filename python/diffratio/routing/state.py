"""What routing keeps of a patched model: plain objects that refer to no module but their own block and table,
so that deepcopy, pickle and PEFT's module copies stay small and independent."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import Signature
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from diffratio_kernels.blocks.ratio_table import RatioTable
from diffratio_kernels.blocks.router import Router
from diffratio_kernels.types import Rescale

from ..config import DiffRatioConfig
from ..families.inspection import Fingerprint, foreign, remember, reuses_rows
from ..families.registry import TIMESTEP_UNITS, Spec, foreign_forward

remember(Router)


def region(timestep: float, regions: int, units: str | tuple[float, float] = "training") -> int:
    """The region 0..regions-1 (0 the cleanest) of a timestep; R regions of equal width (paper section 3.4).

    A float32 below the edge of its region (a noise level of 0.7 is 0.69999999) belongs to it.
    """
    low, high = TIMESTEP_UNITS.get(units, units)
    slack = 0.0 if units == "training" else 1e-6
    position = (timestep - low) * regions * (1 + slack) / (high - low)
    return min(max(int(position // 1), 0), regions - 1)


class SavedRouting:
    """The decisions of a forward pass that gradient checkpointing will run again, by block input.

    Checkpointing keeps the memory of an input but not always the tensor: re-entrant checkpointing detaches
    it, and FSDP hands every call of a block an alias of its own. Where saved tensors are offloaded it
    gets copies of all that the block is given, which are known by their bits."""

    def __init__(self):
        self._by_memory = WeakIdKeyDictionary()
        """Storage -> place in it -> decision; gone when the memory is released."""
        self._by_bits: deque[tuple[Tensor, torch.Size, tuple]] = deque(maxlen=64)

    def __reduce__(self):
        """A copy, pickled or not, has other inputs to come."""
        return SavedRouting, ()

    def put(self, args, kwargs, *decision) -> None:
        """args, kwargs: what the block is called with; its input is the first tensor."""
        given = _tensors(args, kwargs)
        x = given[0]
        places = self._by_memory.setdefault(x.untyped_storage(), {})
        places.setdefault(_place(x), deque(maxlen=64)).append((_marks(given), decision))
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            self._by_bits.append((_checksums(given), x.shape, decision))

    def get(self, args, kwargs) -> tuple | None:
        """The decision for this very input, if this is a recomputation inside a backward pass: the last of a
        call that was given these tensors; where others were made since, the last."""
        if not in_backward():
            return None
        given = _tensors(args, kwargs)
        x = given[0]
        made, marks = self._by_memory.get(x.untyped_storage(), {}).get(_place(x), ()), _marks(given)
        found = [d for known, d in made if known == marks] or [d for _, d in made]
        if not found and self._by_bits:
            bits = _checksums(given)
            found = [d for c, shape, d in self._by_bits if shape == x.shape and torch.equal(c, bits)]
        return found[-1] if found else None


def _tensors(args, kwargs) -> list[Tensor]:
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]


def _marks(tensors: list[Tensor]) -> list[tuple]:
    return [(t.data_ptr(), None if t.is_inference() else t._version) for t in tensors]


def _place(x: Tensor) -> tuple:
    return x.storage_offset(), x.shape, x.stride()


def _checksums(tensors: list[Tensor]) -> Tensor:
    """A number per tensor that other bits hardly have; nothing waits for them until they are compared."""
    sums = []
    for x in tensors:
        x = torch.view_as_real(x) if x.is_complex() else x
        integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
        bits = x.detach().contiguous().view(integer).flatten().long()
        sums.append((bits * torch.arange(1, bits.numel() + 1, device=x.device)).sum())
    return torch.stack(sums)


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


def check_batch(regions: list[int], batch: int) -> None:
    """A ValueError unless there is one for all samples or one per sample."""
    if len(regions) not in (1, batch):
        raise ValueError(
            f"timestep holds {len(regions)} values in several regions, the blocks get a batch of {batch}"
        )


def in_backward() -> bool:
    """Whether the autograd engine is running on this thread: a forward now is a recomputation."""
    return torch._C._current_graph_task_id() != -1


@dataclass
class RoutedModel:
    """What the layers of one patched model share. A copy of a single block has one of its own."""

    config: DiffRatioConfig
    units: str | tuple[float, float] = "training"
    """Of the model's timesteps: a name in `TIMESTEP_UNITS` or an interval."""
    timestep_name: str = "timestep"
    """What the model's forward calls it."""
    timestep_position: int = -1
    """Where the model's forward takes it, counted without self."""
    timesteps_of_tokens: bool = False
    """Whether timesteps in one dimension are those of tokens and not of samples."""
    layouts: list[Spec] = field(default_factory=list)
    """Specs that are told of every call of the model, one of each class."""
    signature: Signature | None = None
    """Of the model's forward, whose arguments they are given by name."""
    dense: dict[str, str] = field(default_factory=dict)
    """Blocks that a spec leaves as they are, and why."""
    baseline: Any = None
    """Of `diffratio.baselines`: what runs the blocks where there are no routers."""
    enabled: bool = True
    ratios: RatioTable | None = None
    """The model's `diffratio_ratios` while it learns them."""
    regions: list[int] | None = None
    """Of the current call, one for all samples or one per sample; None where no call has told."""
    over: bool = False
    """Whether that call has ended: its regions are those of the loss, and of no other call."""
    timesteps: list[float] | None = None
    """Of the current call, on the host; read only where regions or a recording need them."""
    record: list | None = None
    """Where `record_routing` collects, None outside of it."""
    text: Any = None
    """Inside of `cache_text`."""
    memo: dict | None = None
    """What the blocks of one call of the model share, None outside of a call."""
    told: dict[type[Spec], Any] = field(default_factory=dict)
    """By `Spec.layout`, of the last call of the model."""
    layers: list[RoutedLayer] = field(default_factory=list)
    """As `routed_layers` found them last."""
    parents: list[tuple[dict, list]] = field(default_factory=list)
    """What holds the layers' blocks, from the model down: its children, and those of then."""

    def __post_init__(self):
        self.rescale = Rescale(self.config.rescale, 2.0 if self.config.router_start == "identity" else 1.0)

    def __getstate__(self):
        """A copy is in no call and in no context."""
        nothing = dict.fromkeys(("record", "text", "memo", "regions"))
        empty = {"layers": [], "parents": [], "told": {}}  # a copied block refers to no other
        return self.__dict__ | nothing | empty

    @property
    def moved(self) -> bool:
        """Whether blocks were added, taken away or moved since `routed_layers` looked."""
        return not self.parents or any(list(now.values()) != then for now, then in self.parents)

    def configure(self, config: DiffRatioConfig, layers: list[RoutedLayer]) -> None:
        """Take the kept tenths [L][R] from a config."""
        for layer, kept in zip(layers, config.kept_tenths(len(layers)), strict=True):
            layer.kept, layer.tenths = kept, kept[:1]
        self.config, self.regions = config, None
        self.__post_init__()

    def enter(self, timestep: Tensor | float | None) -> None:
        """Take the regions of a call's timesteps: one read by the host, none per block."""
        self.over = False
        if self.config.num_regions == 1 and self.record is None and self.ratios is None:
            self.regions, self.timesteps = None, None
            return
        self.regions = self._regions(timestep)
        for layer in self.layers:
            kept = layer.kept_now()
            layer.tenths = [kept[r] for r in self.regions]

    def _regions(self, timestep: Tensor | float | None) -> list[int]:
        regions = self.config.num_regions
        self.timesteps = None
        if self.timesteps_of_tokens and isinstance(timestep, Tensor) and timestep.dim() == 1:
            timestep = timestep[None]
        if timestep is None:
            if regions == 1:
                return [0]
            raise ValueError("timestep must be given to a model with diffratio regions")
        if isinstance(timestep, Tensor) and timestep.dim() > 1:  # one per token: the noisiest decides
            low, high = TIMESTEP_UNITS.get(self.units, self.units)
            timestep = timestep.flatten(1).amax(1) if high > low else timestep.flatten(1).amin(1)
        timesteps = timestep.flatten().tolist() if isinstance(timestep, Tensor) else [float(timestep)]
        if not all(math.isfinite(t) for t in timesteps):
            raise ValueError(f"timestep must be finite, got {timesteps}")
        self.timesteps = timesteps
        if regions == 1 or not timesteps:
            return [0]
        low, high = TIMESTEP_UNITS.get(self.units, self.units)
        slack = abs(high - low) * 2e-5  # schedulers that interpolate end a little outside
        if min(timesteps) < min(low, high) - slack or max(timesteps) > max(low, high) + slack:
            raise ValueError(
                f"timestep={timesteps} is outside of {low:g}..{high:g}, the units of this model's regions "
                f"({self.units!r}); set them with DiffRatioConfig(timestep_units=...): "
                f"{', '.join(map(repr, TIMESTEP_UNITS))} or an interval (low, high), the cleanest first"
            )
        inside = [region(t, regions, self.units) for t in timesteps]
        return inside[:1] if len(set(inside)) == 1 else inside

    def regions_now(self, layer: RoutedLayer, batch: int | None, args: tuple, kwargs: dict) -> list[int]:
        """The region of each sample, told by the model, its embedding of the timestep or the block; where no
        batch is given one may stand for all samples."""
        if self.config.num_regions == 1:
            return [0] * (batch or 1)
        if self.regions is None or self.memo is None:
            timestep = layer.spec.timestep(layer.block, *args, **kwargs)
            if timestep is not None:
                self.regions, self.over = self._regions(timestep), False
        if self.regions is None or self.over:
            raise RuntimeError(
                f"{layer.name}: no timestep was seen, and this model has {self.config.num_regions} timestep "
                "regions; call the model, or whatever embeds its timestep, before its blocks"
            )
        if batch is None:
            return self.regions
        check_batch(self.regions, batch)
        return self.regions if len(self.regions) > 1 else self.regions * batch


@dataclass
class RoutedLayer:
    """One routed block."""

    block: nn.Module = field(repr=False)
    dense_forward: Callable = field(repr=False)
    """The bound forward of the block; dynamo cannot trace it through `type(block)` in diffusers."""
    number: int
    """Its place among the routed layers."""
    name: str
    spec: Spec
    model: RoutedModel
    kept: list[int]
    """Kept tenths [R] of each timestep region."""
    tenths: list[int] = field(default_factory=lambda: [10])
    """Kept tenths of the current call, one for all samples or one per sample: what a compiled block reads."""
    saved: SavedRouting = field(default_factory=SavedRouting)
    row: int = 0
    """Of the table of learned ratios."""
    tokens: int | None = None
    """N of the last call."""
    drawn: Tensor | None = None
    """The router's weight as it was drawn, on the CPU; None for one that was loaded."""
    inspected: Any = None
    """Of the spec: what it needs to know of the block's modules."""
    router_reason: str | None = None
    """Why the router is called as a module, None where its weights are read."""

    def __post_init__(self):
        self._fingerprint: tuple[Fingerprint, tuple] | None = None

    @property
    def untrained(self) -> bool:
        """Whether the router is as it was drawn, by value: whatever trains or loads it changes that.

        False where the values cannot be seen: on the meta device, in shards.
        """
        if self.drawn is None:
            return False
        weight = self.block.diffratio.router_weight.detach()
        if weight.is_meta or type(weight) is not Tensor:
            return False
        return torch.equal(self.drawn.to(weight), weight)

    def __getstate__(self):
        """Without the dense forward: a bound method is kept by its name, which leads to the routed one."""
        return self.__dict__ | {"dense_forward": None, "_fingerprint": None, "inspected": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, dense_forward=MethodType(type(state["block"]).forward, state["block"]))

    def inspect(self) -> None:
        """Look at the block's modules again if a class, a forward, a hook or a child of it has changed."""
        if self._fingerprint is not None:
            fingerprint, known = self._fingerprint
            if fingerprint.now() == known:
                return
        block = self.block
        reason = foreign_forward(block) or reuses_rows(block)
        if reason is not None:
            raise ValueError(f"{self.name}: {reason}; remove that, or remove_diffratio first")
        self.inspected = self.spec.inspect(block)
        router = block._modules.get("diffratio")
        reason = "there is no router" if router is None else foreign(router, Router)
        self.router_reason = reason and f"diffratio: {reason}"
        fingerprint = Fingerprint(block)
        self._fingerprint = fingerprint, fingerprint.now()

    def kept_now(self) -> list[int]:
        """Kept tenths [R] of a call without a gradient: of the nearest bins while ratios are learned."""
        table = self.model.ratios
        return self.kept if table is None else table.nearest()[self.row]

    def record(self, shape: tuple[int, int], index: Tensor) -> None:
        """Record a selection among [B, N] tokens where that is asked for."""
        if self.model.record is not None:
            shape = tuple(shape)
            self.model.record.append(Routing(self.number, self.model.timesteps, index, shape))
