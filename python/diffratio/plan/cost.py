"""Seconds of a step: predicted from what a device can do."""

from __future__ import annotations

from dataclasses import dataclass

from diffratio_kernels.kernels.triton import config

from .device import Device
from .steps import ROW_STEPS, Step
from .steps import step as step_of
from .waves import product_seconds


@dataclass(frozen=True)
class Cost:
    """A step and its seconds. bound: what takes most of them, "FLOPs", "bytes" or "launch". origin:
    "measured" (between two measurements), "scaled" (outside of them, at the rate of the nearest) or
    "predicted" (by the tile-and-wave model)."""

    step: Step
    seconds: float
    bound: str
    origin: str


@dataclass(frozen=True)
class Predicted:
    """The costs of steps on a device that nothing was measured on."""

    device: Device

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.device.itemsize

    @property
    def title(self) -> str:
        """Where the seconds are from."""
        return f"predicted for {self.device.name} from its {self.device.source}"

    @property
    def makes_next_logits(self) -> bool:
        """Whether a layer makes the router logits of the next one where it puts its rows back: on a GPU."""
        return self.device.architecture is not None

    def cost(self, step: Step) -> Cost:
        """Products by tiles and waves, attention at the device's rate, the others by their bytes; a product
        with a row step in it as the table of tiles has it beside the two apart."""
        device = self.device
        if step.products:
            seconds = sum(product_seconds(*product, device) for product in step.products)
        else:
            moving = device.memory_seconds(step.moved)
            seconds = max(self._attending(step), moving) + step.launches * device.launch_seconds
        if step.operator in ROW_STEPS:
            apart = seconds + self.cost(step_of(ROW_STEPS[step.operator], step.sizes)).seconds
            seconds = self._entry(step).of_library * apart
        return Cost(step, seconds, bound(step, device), "predicted")

    def is_one_kernel(self, joined: Step) -> bool:
        """Whether `mod_block` runs a product and the row step after it as this step: on a GPU in a dtype of
        two bytes, where the table of tiles says that it is faster."""
        if self.device.architecture is None or self.itemsize != 2:
            return False
        return self._entry(joined).of_library < 1

    def _entry(self, joined: Step) -> config.ProductTile:
        [(rows, columns, inner)] = joined.products
        return config.nearest(joined.operator, self.device.architecture, columns, rows, inner)

    def _attending(self, step: Step) -> float:
        if not step.computes:
            return 0.0
        return step.flops / attention_rate(self.device, step.sizes.width // step.sizes.heads)


def attention_rate(device: Device, head_dim: int) -> float:
    """Useful FLOP/s: heads are padded to a multiple of 16, and `attention_flops` holds for 72 of 80."""
    padded = -(-head_dim // 16) * 16
    return device.attention_flops * (head_dim / padded) / (72 / 80)


def bound(step: Step, device: Device) -> str:
    """What takes most of a step's time on a device, at full rates."""
    peak = (
        device.peak_flops if step.products else attention_rate(device, step.sizes.width // step.sizes.heads)
    )
    times = {
        "FLOPs": step.flops / peak if step.computes else 0.0,
        "bytes": device.memory_seconds(step.moved),
        "launch": step.launches * device.launch_seconds,
    }
    return max(times, key=times.__getitem__)
