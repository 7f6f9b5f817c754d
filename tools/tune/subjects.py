"""What is tuned: products with an epilogue and attention of PixArt-XL, each beside the library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from diffratio_kernels import reference
from diffratio_kernels._backends import kernels
from diffratio_kernels._triton import tiles
from diffratio_kernels.types import Finish, Linear, PackedRows, Rescale, Seqlens

Tensors = dict[str, Tensor]
SHAPES = [(1, 1024), (16, 1024), (2, 4096), (16, 4096)]
ROWS = sorted({batch * ceil(tokens * tenths / 10) for batch, tokens in SHAPES for tenths in (10, 7, 5, 3)})
HELD = 80
"""Columns that heads of 72 are held as: 64 and 16."""
SAMPLE = 64
"""Tokens of a sample; every second one is kept."""


@dataclass(frozen=True)
class Subject:
    """One kernel at one shape: a product of [rows, inner] with [inner, columns], or attention of two samples
    of `rows` tokens with columns // inner heads of `inner`."""

    kernel: str
    rows: int
    columns: int
    inner: int

    @property
    def is_attention(self) -> bool:
        return self.kernel == "attention_fwd"


@dataclass(frozen=True)
class Ways:
    """The same result by our kernel, by the library with a row kernel, and by the reference in any dtype."""

    ours: Callable[[Tensors], Tensor]
    library: Callable[[Tensors], Tensor]
    reference: Callable[[Tensors], Tensor]


def subjects(
    width: int = 1152, hidden: int = 4608, head_dim: int = 72, rows=ROWS, tokens=2048
) -> list[Subject]:
    """The most used first: a run that ends early has tuned these."""
    shapes = {
        "linear_gate_residual": (width, width), "linear_scatter": (width, hidden),
        "linear_gelu": (hidden, width), "linear_gelu_backward": (hidden, width),
    }  # fmt: skip
    products = [Subject(kernel, count, *shape) for kernel, shape in shapes.items() for count in rows]
    return [Subject("attention_fwd", tokens, width, head_dim), *products]


def draw(subject: Subject, dtype: torch.dtype, device: str) -> Tensors:
    """Its tensors, the same every time."""
    generator = None if device == "meta" else torch.Generator(device).manual_seed(0)

    def normal(*shape, std=1.0):
        return (torch.randn(shape, generator=generator, device=device) * std).to(dtype)

    rows, columns, inner = subject.rows, subject.columns, subject.inner
    if subject.is_attention:
        joined = normal(2 * rows, 3, columns // inner, inner)
        offsets = torch.arange(0, 3 * rows, rows, dtype=torch.int32, device=device)
        return {"joined": joined, "cu_seqlens": offsets}
    weight = normal(columns, inner, std=inner**-0.5)
    if subject.kernel == "linear_gelu_backward":
        return {"grad": normal(rows, inner), "weight": weight.t().contiguous(), "pre": normal(rows, columns)}
    tensors = {"rows": normal(rows, inner), "weight": weight, "bias": normal(columns)}
    if subject.kernel == "linear_gelu":
        return tensors
    samples, index = ceil(2 * rows / SAMPLE), 2 * torch.arange(rows, device=device)
    row_map = torch.full((samples * SAMPLE,), -1, dtype=torch.int32, device=device)
    row_map[index] = torch.arange(rows, dtype=torch.int32, device=device)
    x = normal(samples, SAMPLE, columns)
    return tensors | {
        "hidden": x.flatten(0, 1)[index], "gate": normal(samples, columns), "index": index,
        "row_map": row_map,
        "x": x, "logits": normal(samples, SAMPLE).float(),
    }  # fmt: skip


def _linear(t: Tensors) -> Linear:
    return Linear(t["weight"], t["bias"])


def _packed(t: Tensors) -> PackedRows:
    """As in a block, whose selection made the row map."""
    return PackedRows(t["index"], SAMPLE, row_map=t["row_map"])


def _triton_gate_residual(t: Tensors) -> Tensor:
    """As in a block: it finds the rows of hidden in x."""
    fused = kernels("fused_linear", "gate_residual").linear_gate_residual
    return fused(t["x"], t["rows"], _linear(t), t["gate"], _packed(t))


def _library_gate_residual(t: Tensors) -> Tensor:
    row_kernel = kernels("gate_residual", "triton").gate_residual
    return row_kernel(t["hidden"], _linear(t)(t["rows"]), t["gate"], _packed(t))


def _reference_gate_residual(t: Tensors) -> Tensor:
    return reference.gate_residual(t["hidden"], _linear(t)(t["rows"]), t["gate"], _packed(t))


def _finish(t: Tensors, branch: Tensor) -> Finish:
    return Finish(t["x"], _packed(t), t["hidden"], branch, t["gate"], t["logits"], Rescale())


def _triton_scatter(t: Tensors) -> Tensor:
    """It copies the other rows in a launch of its own."""
    fused = kernels("fused_linear", "scatter").linear_scatter
    return fused(_finish(t, t["rows"]), _linear(t))


def _library_scatter(t: Tensors) -> Tensor:
    return kernels("scatter_rescale", "triton").scatter_rescale(_finish(t, _linear(t)(t["rows"])))


def _reference_scatter(t: Tensors) -> Tensor:
    return reference.scatter_rescale(_finish(t, _linear(t)(t["rows"])))


def _triton_gelu(t: Tensors) -> Tensor:
    return kernels("mlp", "triton").linear_gelu(t["rows"], _linear(t))


def _library_gelu(t: Tensors) -> Tensor:
    if t["rows"].device.type == "cuda":
        return kernels("mlp", "cublaslt").linear_gelu(t["rows"], _linear(t))
    return _reference_gelu(t)


def _reference_gelu(t: Tensors) -> Tensor:
    return kernels("mlp", "reference").linear_gelu(t["rows"], _linear(t))


def _triton_gelu_backward(t: Tensors) -> Tensor:
    return kernels("mlp", "triton").linear_gelu_backward(t["grad"], t["weight"], t["pre"])[0]


def _library_gelu_backward(t: Tensors) -> tuple[Tensor, Tensor]:
    return _reference_gelu_backward(t), F.gelu(t["pre"], approximate="tanh")


def _reference_gelu_backward(t: Tensors) -> Tensor:
    return torch.ops.aten.gelu_backward(t["grad"] @ t["weight"], t["pre"], approximate="tanh")


def _attention(backend: str, t: Tensors) -> Tensor:
    rows = t["joined"].shape[0] // 2
    seqlens = Seqlens(t["cu_seqlens"], t["cu_seqlens"], rows, rows)
    return kernels("attention", backend).attention(*t["joined"].unbind(1), seqlens, None)


def _triton_attention(t: Tensors) -> Tensor:
    return _attention("triton", t)


def _library_attention(t: Tensors) -> Tensor:
    return _attention("sdpa", t)


def _reference_attention(t: Tensors) -> Tensor:
    return _attention("reference", t)


WAYS = {
    "linear_gate_residual": Ways(_triton_gate_residual, _library_gate_residual, _reference_gate_residual),
    "linear_scatter": Ways(_triton_scatter, _library_scatter, _reference_scatter),
    "linear_gelu": Ways(_triton_gelu, _library_gelu, _reference_gelu),
    "linear_gelu_backward": Ways(_triton_gelu_backward, _library_gelu_backward, _reference_gelu_backward),
    "attention_fwd": Ways(_triton_attention, _library_attention, _reference_attention),
}


def held_tile(tile: tuple[int, ...]):
    """A context: inside, attention takes this tile, whatever the shape."""
    return mock.patch.object(tiles, "attention_tile", lambda *_: tile)


@contextmanager
def tile_of(subject: Subject, architecture: int, tile: tuple[int, ...]) -> Iterator[None]:
    """Inside, launches of the subject take this tile."""
    if subject.is_attention:
        with held_tile(tile):
            yield
        return
    entry = replace(tiles.PRODUCT_TILES[0], tile=tile)
    with mock.patch.object(tiles, "nearest", lambda *_: entry):
        yield
