"""How much each layer keeps, in which timestep region, and what the router score does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from numbers import Integral, Real

from diffratio_kernels._checks import RESCALE
from diffratio_kernels.blocks.bins import ROUNDINGS
from diffratio_kernels.blocks.router import STARTS


@dataclass(frozen=True)
class DiffRatioConfig:
    """One knob plus overrides.

    Args:
        compression (`float`, defaults to 0.3):
            Part of the tokens that every routed layer skips, in tenths: 0.0, 0.1, ... 1.0 (1.0 bypasses the
            block). A layer keeps `ceil((1 - compression) * N)` of its N tokens.
        overrides (`dict[int, float | list[float]]`):
            Compression of single layers (negative numbers count from the end), one value for all timesteps
            or one per region.
        num_regions (`int`, defaults to 1):
            Timestep regions of equal width over training timesteps 0..999, region 0 being the cleanest
            (paper section 3.4).
        rescale (`str`, defaults to "mlp"):
            What the router score multiplies: "mlp", "residual", "output" or "none".
        router_start (`str`, defaults to "identity"):
            "identity" (factor 2 * sigmoid, starts as the pretrained model) or "faithful" (the authors'
            sigmoid).
        router_bias (`bool`, defaults to False):
            Whether the routers have a bias.
        timestep_units (`str | tuple[float, float]`, *optional*):
            What the model is given as timestep, for its regions: "training" (0..999), "noise" (a level in
            [0, 1]) or an interval (low, high), the cleanest first, for schedulers with units of their own
            (EDM). None is what the model's family is known for.
        rounding (`str`, defaults to "ceil"):
            "floor" keeps `floor((1 - compression) * N)` tokens, at least one, as the authors' uniform MoD.

    Raises:
        ValueError: a value is none of those above; the error names the argument.

    Example:
        >>> config = DiffRatioConfig(compression=0.3, overrides={0: 0.0, -1: 0.0})  # first and last keep all
        >>> config.kept_tenths(layers=4)
        [[10], [7], [7], [10]]
    """

    compression: float = 0.3
    overrides: dict[int, float | list[float]] = field(default_factory=dict)
    num_regions: int = 1
    rescale: str = "mlp"
    router_start: str = "identity"
    router_bias: bool = False
    timestep_units: str | tuple[float, float] | None = None
    rounding: str = "ceil"

    def __post_init__(self):
        regions = self.num_regions
        if isinstance(regions, bool) or not isinstance(regions, Integral) or not 1 <= regions <= 1000:
            raise ValueError(f"num_regions={regions!r} must be an integer in 1..1000")
        for name, choices in (("rescale", RESCALE), ("router_start", STARTS), ("rounding", ROUNDINGS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {choices}")
        if not isinstance(self.router_bias, bool):
            raise ValueError(f"router_bias={self.router_bias!r} must be True or False")
        if not isinstance(self.overrides, dict):
            raise ValueError(f"overrides={self.overrides!r} must be a dict of layer -> compression")
        # Plain numbers: what numpy gives cannot be saved. And copies: the caller's dict and lists may change.
        for name, value in {
            "compression": _tenths("compression", self.compression) / 10,
            "num_regions": int(regions),
            "timestep_units": _units(self.timestep_units),
            "overrides": dict(self._override(*one) for one in self.overrides.items()),
        }.items():
            object.__setattr__(self, name, value)

    def _override(self, layer: int, value) -> tuple[int, float | list[float]]:
        """One of the overrides in plain numbers."""
        if not isinstance(layer, Integral) or isinstance(layer, bool):
            raise ValueError(f"overrides: layer {layer!r} must be an integer")
        name = f"overrides[{layer}]"
        if not isinstance(value, (list, tuple)):
            return int(layer), _tenths(name, value) / 10
        if len(value) != self.num_regions:
            raise ValueError(f"{name}={value!r} must hold num_regions={self.num_regions} values")
        return int(layer), [_tenths(name, one) / 10 for one in value]

    def kept_tenths(self, layers: int) -> list[list[int]]:
        """The table [L][R] of kept tenths for a model with that many routed layers."""
        table = [[self.compression] * self.num_regions for _ in range(layers)]
        named: dict[int, int] = {}
        for layer, value in self.overrides.items():
            if not -layers <= layer < layers:
                raise ValueError(
                    f"overrides: layer {layer} must be in {-layers}..{layers - 1} (routed layers)"
                )
            other = named.setdefault(layer % layers, layer)
            if other != layer:
                raise ValueError(
                    f"overrides: layers {other} and {layer} are the same one of {layers} routed layers"
                )
            table[layer] = value if isinstance(value, list) else [value] * self.num_regions
        return [[10 - round(10 * one) for one in row] for row in table]

    def to_dict(self) -> dict:
        """Plain JSON types."""
        data = dataclasses.asdict(self)
        data["overrides"] = {str(layer): value for layer, value in data["overrides"].items()}
        return data

    @classmethod
    def from_dict(cls, data: dict) -> DiffRatioConfig:
        """The inverse of `to_dict`; an unknown or missing name is an error."""
        if not isinstance(data, dict):
            raise ValueError(f"config must be a dict, got {type(data).__name__}")
        data = {"rounding": "ceil"} | data  # what was written before there was another one
        names = {f.name for f in dataclasses.fields(cls)}
        unknown, missing = sorted(map(str, set(data) - names)), sorted(names - set(data))
        if unknown or missing:
            raise ValueError(f"config has unknown entries {unknown} and misses {missing}")
        if isinstance(data.get("overrides"), dict):
            try:
                data["overrides"] = {int(layer): value for layer, value in data["overrides"].items()}
            except (ValueError, TypeError):
                raise ValueError(f"overrides={data['overrides']!r} must have integer layers") from None
        return cls(**data)


def _units(value):
    """A name of units, an interval as a tuple, or None; anything else is an error."""
    if value is None or value in ("training", "noise"):
        return value
    numbers = isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, Real) for v in value)
    if not numbers or not value[0] < value[1]:
        raise ValueError(
            f"timestep_units={value!r} must be 'training', 'noise' or an interval (low, high) of numbers"
        )
    return float(value[0]), float(value[1])


def _tenths(name: str, value: float) -> int:
    """0.3 -> 3; anything that is not a tenth in 0..1 is an error."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name}={value!r} must be a number")
    tenths = round(10 * value) if value == value and abs(value) <= 1 else -1
    if not 0 <= tenths <= 10 or abs(10 * value - tenths) > 1e-6:
        raise ValueError(f"{name}={value!r} must be a tenth: 0.0, 0.1, ... 1.0")
    return tenths
