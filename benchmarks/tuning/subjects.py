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
from diffratio_kernels.kernels import cublaslt, sdpa
from diffratio_kernels.kernels.triton import config
from diffratio_kernels.kernels.triton import launchers as triton

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
        return {"joined": joined, "offsets": offsets}
    weight = normal(columns, inner, std=inner**-0.5)
    if subject.kernel == "linear_gelu_backward":
        return {"grad": normal(rows, inner), "weight": weight.t().contiguous(), "pre": normal(rows, columns)}
    tensors = {"rows": normal(rows, inner), "weight": weight, "bias": normal(columns)}
    if subject.kernel == "linear_gelu":
        return tensors
    samples, index = ceil(2 * rows / SAMPLE), 2 * torch.arange(rows, device=device)
    place = torch.full((samples * SAMPLE,), -1, dtype=torch.int32, device=device)
    place[index] = torch.arange(rows, dtype=torch.int32, device=device)
    x = normal(samples, SAMPLE, columns)
    return tensors | {
        "hidden": x.flatten(0, 1)[index], "gate": normal(samples, columns), "index": index, "place": place,
        "x": x, "logits": normal(samples, SAMPLE).float(),
    }  # fmt: skip


def _product(t: Tensors) -> tuple[Tensor, Tensor, Tensor | None]:
    return t["rows"], t["weight"], t["bias"]


def _put(t: Tensors) -> tuple[Tensor, Tensor, str, float]:
    return t["gate"], t["logits"], "mlp", 1.0


def _library_gelu(t: Tensors) -> Tensor:
    if t["rows"].device.type == "cuda":
        return cublaslt.linear_gelu(*_product(t))
    return F.gelu(F.linear(*_product(t)), approximate="tanh")


def _library_gelu_backward(t: Tensors) -> tuple[Tensor, Tensor]:
    grad = torch.ops.aten.gelu_backward(t["grad"] @ t["weight"], t["pre"], approximate="tanh")
    return grad, F.gelu(t["pre"], approximate="tanh")


def _attention(function: Callable, t: Tensors) -> Tensor:
    rows = t["joined"].shape[0] // 2
    packing = t["offsets"], t["offsets"], rows, rows, None, None
    result = function(*t["joined"].unbind(1), *packing)
    return result[0] if isinstance(result, tuple) else result


WAYS = {
    # As in a block: ours finds the rows of hidden in x.
    "linear_gate_residual": Ways(
        lambda t: triton.linear_gate_residual(t["x"], *_product(t), t["gate"], t["index"], SAMPLE),
        lambda t: triton.gate_residual(t["hidden"], F.linear(*_product(t)), t["gate"], t["index"], SAMPLE),
        lambda t: reference.gate_residual(t["hidden"], F.linear(*_product(t)), t["gate"], t["index"], SAMPLE),
    ),
    # As in a block, whose selection knows the places: ours copies the other rows in a launch of its own.
    "linear_scatter": Ways(
        lambda t: triton.linear_scatter(t["x"], t["index"], t["hidden"], *_product(t), *_put(t), t["place"]),
        lambda t: triton.scatter_rescale(
            t["x"], t["index"], t["hidden"], F.linear(*_product(t)), *_put(t), t["place"]
        ),
        lambda t: reference.scatter_rescale(
            t["x"], t["index"], t["hidden"], F.linear(*_product(t)), *_put(t)
        ),
    ),
    "linear_gelu": Ways(
        lambda t: triton.linear_gelu(*_product(t), False)[0],
        _library_gelu,
        lambda t: F.gelu(F.linear(*_product(t)), approximate="tanh"),
    ),
    "linear_gelu_backward": Ways(
        lambda t: triton.linear_gelu_backward(t["grad"], t["weight"], t["pre"])[0],
        _library_gelu_backward,
        lambda t: torch.ops.aten.gelu_backward(t["grad"] @ t["weight"], t["pre"], approximate="tanh"),
    ),
    "attention_fwd": Ways(
        lambda t: _attention(triton.attention, t),
        lambda t: _attention(sdpa.attention, t),
        lambda t: _attention(reference.attention, t),
    ),
}


def held_tile(architecture: int, tile: tuple[int, ...]):
    """A context: inside, attention of heads that are held as HELD columns takes this tile."""
    return mock.patch.dict(config.ATTENTION_TILES["attention_fwd"][architecture], {HELD: tile})


@contextmanager
def tile_of(subject: Subject, architecture: int, tile: tuple[int, ...]) -> Iterator[None]:
    """Inside, launches of the subject take this tile."""
    if subject.is_attention:
        with held_tile(architecture, tile):
            yield
        return
    entry = replace(config.PRODUCT_TILES[0], tile=tile)
    with mock.patch.object(config, "nearest", lambda *_: entry):
        yield
