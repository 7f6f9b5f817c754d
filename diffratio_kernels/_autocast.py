"""Whether autocast is on: torch raises for the meta device, which has none."""

import torch


def autocast_is_on(device: torch.device) -> bool:
    """Whether autocast casts the tensors of a device."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)
