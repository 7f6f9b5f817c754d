"""Seconds of a step on a device that nothing was measured on: predicted, by the roofline of its datasheet."""

from dataclasses import dataclass

from ..evaluation.flops import TransformerShape, step_cost

LAUNCHES = {"route": 2, "mlp": 2}
"""Kernels of an operator that is more than one."""


@dataclass(frozen=True)
class Device:
    """What a device reaches.

    Args:
        name: as torch calls it.
        peak_flops: FLOP/s of a big product.
        attention_flops: FLOP/s of attention with heads of 72.
        bandwidth: bytes/s of a kernel that streams.
        source: where the figures are from.
        launch_seconds: of one kernel inside a CUDA graph.
        itemsize: bytes of an element.

    Raises:
        ValueError: a figure that is not positive; the message names it.
    """

    name: str
    peak_flops: float
    attention_flops: float
    bandwidth: float
    source: str
    launch_seconds: float = 1.2e-6
    itemsize: int = 2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name not in ("name", "source") and not value > 0:
                raise ValueError(f"{name}: {value} must be positive")

    @property
    def title(self) -> str:
        """Where the seconds are from."""
        return f"predicted for {self.name} {self.source}: not measured"

    def seconds(self, operator: str, shape: TransformerShape, kept: int, batch: int) -> tuple[float, str]:
        """The larger time of FLOPs and bytes, and the launches; "predicted"."""
        cost = step_cost(operator, shape, kept, batch=batch, itemsize=self.itemsize)
        rate = self.attention_flops if "attention" in operator else self.peak_flops
        launches = LAUNCHES.get(operator, 1) * self.launch_seconds
        return max(cost.flops / rate, cost.bytes / self.bandwidth) + launches, "predicted"


def _device(name: str, flops: float, attention: float, bandwidth: float) -> Device:
    """Dense bf16 TFLOP/s and GB/s of the datasheet, and TFLOP/s of attention, which are assumed."""
    source = f"from its datasheet, 80 % of {flops:g} TFLOP/s and 81 % of {bandwidth:g} GB/s"
    return Device(name, 0.8e12 * flops, 1e12 * attention, 0.81e9 * bandwidth, source)


DEVICES = {
    "a100": _device("NVIDIA A100-SXM4-80GB", 312, 180, 2039),
    "h100": _device("NVIDIA H100 80GB HBM3", 989.4, 520, 3350),
    "h200": _device("NVIDIA H200", 989.4, 520, 4800),
}
