"""What a GPU can do: datasheet figures, and what is assumed to be reached of them."""

from __future__ import annotations

from dataclasses import dataclass

LAUNCH_SECONDS = 1.2e-6
"""One kernel inside a CUDA graph, assumed."""


@dataclass(frozen=True)
class Device:
    """What a prediction needs of a device.

    multiprocessors: how many tiles of a product run at a time. peak_flops: dense bf16 FLOP/s.
    architecture: 80 or 90, the table of tiles that a GPU takes; None for a CPU.
    bandwidth: bytes/s of device memory. attention_flops: useful FLOP/s of attention with heads of 72.
    source: where the figures are from. launch_seconds: of one kernel. itemsize: bytes of an element.

    Raises:
        ValueError: a figure that is not positive, or another architecture; the message names it.
    """

    name: str
    architecture: int | None
    multiprocessors: int
    peak_flops: float
    bandwidth: float
    attention_flops: float
    source: str
    launch_seconds: float = LAUNCH_SECONDS
    itemsize: int = 2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name not in ("name", "architecture", "source") and not value > 0:
                raise ValueError(f"{name}: {value} must be positive")
        if self.architecture not in (None, 80, 90):
            raise ValueError(f"architecture: {self.architecture!r} is not 80, 90 or None")

    def memory_seconds(self, moved: float) -> float:
        """Seconds for `moved` bytes of device memory: a kernel that streams reaches 9/10 of the bandwidth."""
        return moved / (0.9 * self.bandwidth)


def _device(
    name: str, architecture: int, multiprocessors: int, sheet: tuple[float, float], attention: float
) -> Device:
    """sheet: the datasheet's dense bf16 TFLOP/s and GB/s; attention: useful TFLOP/s, assumed.

    Big products hold 4/5 of the datasheet's rate under load, copies 9/10 of its bandwidth, assumed too.
    """
    flops, bandwidth = sheet
    return Device(
        name,
        architecture,
        multiprocessors,
        peak_flops=0.8 * flops * 1e12,
        bandwidth=0.9 * bandwidth * 1e9,
        attention_flops=attention * 1e12,
        source=f"datasheet: {flops:g} TFLOP/s and {bandwidth:g} GB/s, assumed to be reached to 80 and 90 %",
    )


DEVICES = {
    "a100": _device("NVIDIA A100-SXM4-80GB", 80, 108, (312, 2039), 180),
    "h100": _device("NVIDIA H100 80GB HBM3", 90, 132, (989.4, 3350), 520),
    "h200": _device("NVIDIA H200", 90, 132, (989.4, 4800), 520),
}
