"""How much each layer keeps, in which timestep region, and what the router score does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from numbers import Integral, Real

from diffratio_kernels.modules.router import STARTS
from diffratio_kernels.ops.validate import RESCALE


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
    """

    compression: float = 0.3
    overrides: dict[int, float | list[float]] = field(default_factory=dict)
    num_regions: int = 1
    rescale: str = "mlp"
    router_start: str = "identity"
    router_bias: bool = False

    def __post_init__(self):
        _tenths("compression", self.compression)
        regions = self.num_regions
        if isinstance(regions, bool) or not isinstance(regions, Integral) or not 1 <= regions <= 1000:
            raise ValueError(f"num_regions={self.num_regions!r} must be an integer in 1..1000")
        if self.rescale not in RESCALE:
            raise ValueError(f"rescale={self.rescale!r} must be one of {RESCALE}")
        if self.router_start not in STARTS:
            raise ValueError(f"router_start={self.router_start!r} must be one of {STARTS}")
        if not isinstance(self.router_bias, bool):
            raise ValueError(f"router_bias={self.router_bias!r} must be True or False")
        if not isinstance(self.overrides, dict):
            raise ValueError(f"overrides={self.overrides!r} must be a dict of layer -> compression")
        for layer, value in self.overrides.items():
            if not isinstance(layer, Integral) or isinstance(layer, bool):
                raise ValueError(f"overrides: layer {layer!r} must be an integer")
            if isinstance(value, (list, tuple)) and len(value) != self.num_regions:
                raise ValueError(
                    f"overrides[{layer}]={value!r} must hold num_regions={self.num_regions} values"
                )
            for one in value if isinstance(value, (list, tuple)) else [value]:
                _tenths(f"overrides[{layer}]", one)
        # The caller's dict and lists may change later, and must not change a checked config.
        copied = {k: list(v) if isinstance(v, (list, tuple)) else v for k, v in self.overrides.items()}
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


def _tenths(name: str, value: float) -> int:
    """0.3 -> 3; anything that is not a tenth in 0..1 is an error."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name}={value!r} must be a number")
    tenths = round(10 * value) if value == value and abs(value) <= 1 else -1
    if not 0 <= tenths <= 10 or abs(10 * value - tenths) > 1e-6:
        raise ValueError(f"{name}={value!r} must be a tenth: 0.0, 0.1, ... 1.0")
    return tenths
