"""How much each layer keeps, in which timestep region, and what the router score does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from numbers import Integral, Real

from diffratio_kernels._checks import RESCALE
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

    def __post_init__(self):
        # Plain numbers: what numpy gives cannot be saved.
        object.__setattr__(self, "compression", _tenths("compression", self.compression) / 10)
        regions = self.num_regions
        if isinstance(regions, bool) or not isinstance(regions, Integral) or not 1 <= regions <= 1000:
            raise ValueError(f"num_regions={self.num_regions!r} must be an integer in 1..1000")
        object.__setattr__(self, "num_regions", int(regions))
        if self.rescale not in RESCALE:
            raise ValueError(f"rescale={self.rescale!r} must be one of {RESCALE}")
        if self.router_start not in STARTS:
            raise ValueError(f"router_start={self.router_start!r} must be one of {STARTS}")
        if not isinstance(self.router_bias, bool):
            raise ValueError(f"router_bias={self.router_bias!r} must be True or False")
        object.__setattr__(self, "timestep_units", _units(self.timestep_units))
        if not isinstance(self.overrides, dict):
            raise ValueError(f"overrides={self.overrides!r} must be a dict of layer -> compression")
        for layer, value in self.overrides.items():
            if not isinstance(layer, Integral) or isinstance(layer, bool):
                raise ValueError(f"overrides: layer {layer!r} must be an integer")
            if isinstance(value, (list, tuple)) and len(value) != self.num_regions:
                raise ValueError(
                    f"overrides[{layer}]={value!r} must hold num_regions={self.num_regions} values"
                )
        # A copy: the caller's dict and lists may change later, and must not change a checked config.
        copied = {int(layer): _compressions(layer, value) for layer, value in self.overrides.items()}
        object.__setattr__(self, "overrides", copied)

    def kept_tenths(self, layers: int) -> list[list[int]]:
        """The table [L][R] of kept tenths for a model with that many routed layers."""
        table = [[10 - _tenths("compression", self.compression)] * self.num_regions for _ in range(layers)]
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
            values = value if isinstance(value, (list, tuple)) else [value] * self.num_regions
            table[layer] = [10 - _tenths(f"overrides[{layer}]", one) for one in values]
        return table

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
        names = {f.name for f in dataclasses.fields(cls)}
        unknown, missing = sorted(map(str, set(data) - names)), sorted(names - set(data))
        if unknown or missing:
            raise ValueError(f"config has unknown entries {unknown} and misses {missing}")
        data = dict(data)
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


def _compressions(layer: int, value) -> float | list[float]:
    """One compression, or one per region, as plain numbers."""
    name = f"overrides[{layer}]"
    if isinstance(value, (list, tuple)):
        return [_tenths(name, one) / 10 for one in value]
    return _tenths(name, value) / 10


def _tenths(name: str, value: float) -> int:
    """0.3 -> 3; anything that is not a tenth in 0..1 is an error."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name}={value!r} must be a number")
    tenths = round(10 * value) if value == value and abs(value) <= 1 else -1
    if not 0 <= tenths <= 10 or abs(10 * value - tenths) > 1e-6:
        raise ValueError(f"{name}={value!r} must be a tenth: 0.0, 0.1, ... 1.0")
    return tenths
