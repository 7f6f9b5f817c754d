"""q, k and v as one matrix, without a second copy of the weights: the parameters become views of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def why_not_one_matrix(linears: list[nn.Linear]) -> str | None:
    """Why Linears cannot be one matrix product, None where they can."""
    if len({linear.bias is None for linear in linears}) > 1:
        return "only some of q, k and v have a bias"
    if len({(linear.weight.dtype, linear.weight.device, linear.weight.shape) for linear in linears}) > 1:
        return "q, k and v differ in dtype, device or shape"
    return None


def concatenated(linears: list[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weights and biases of the Linears as one tensor each."""
    bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])
    return torch.cat([linear.weight for linear in linears]), bias


def pack(linears: list[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Put the weights (and biases) of same-sized Linears into one tensor each; returns both.

    The parameters keep their names, values and identity; only their storage is shared.
    """
    with torch.inference_mode(False), torch.no_grad():
        weight, bias = concatenated(linears)
        for linear, rows in zip(linears, weight.chunk(len(linears)), strict=True):
            linear.weight.data = rows
        if bias is not None:
            for linear, part in zip(linears, bias.chunk(len(linears)), strict=True):
                linear.bias.data = part
    return weight, bias


def still_packed(linears: list[nn.Linear], packed: tuple[Tensor, Tensor | None] | None) -> bool:
    """Whether the Linears still are views of `packed` (a move, a cast or FSDP ends that)."""
    if packed is None:
        return False
    weight, bias = packed
    if not _views([linear.weight for linear in linears], weight):
        return False
    return (bias is None) == (linears[0].bias is None) and (
        bias is None or _views([linear.bias for linear in linears], bias)
    )


def _views(parts: list[Tensor], whole: Tensor) -> bool:
    step = whole.numel() // len(parts) * whole.element_size()
    return all(
        part.data_ptr() == whole.data_ptr() + i * step
        and part.dtype == whole.dtype
        and part.device == whole.device
        for i, part in enumerate(parts)
    )


def sharing(linears: list[nn.Module], packed: tuple[Tensor, Tensor | None] | None) -> list[nn.Parameter]:
    """The parameters that still are views of `packed`.

    Some may have been moved and others not, or lie deeper by now: in a LoRA layer's base layer.
    """
    storages = {whole.untyped_storage().data_ptr() for whole in packed or () if whole is not None}
    return [
        parameter
        for parameter in nn.ModuleList(linears).parameters()
        if type(parameter.data) is Tensor and parameter.data.untyped_storage().data_ptr() in storages
    ]


def unpack(linears: list[nn.Module], packed: tuple[Tensor, Tensor | None] | None) -> None:
    """Give every parameter that still is a view of `packed` storage of its own again."""
    with torch.inference_mode(False), torch.no_grad():
        for parameter in sharing(linears, packed):
            parameter.data = parameter.data.clone()
