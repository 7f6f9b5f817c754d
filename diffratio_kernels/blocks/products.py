"""The products of a block between its operators: by raw weights into a shared buffer, with a row step as
their epilogue where one kernel is faster, or by whatever module there is."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._backends import choose, kernels
from .._choice import takes_ours
from ..ops.activation.op import run_activation
from ..ops.mlp.op import choose_mlp
from ..types import Gated, Linear, Product, Run
from .stream import Mlp, SelfAttention

_GELU = {"gelu_tanh": "tanh", "gelu": "none"}
"""Kinds of activation -> what torch calls them."""


def run_of(op: str, backend: str, attention: str, x: Tensor, direct: bool) -> Run:
    """Row steps by `backend`; attention and MLP by it too where it has them, else by "auto"."""
    others = backend if backend in ("triton", "reference") else "auto"
    return Run(
        rows=choose(op, backend, x.device, x.dtype),
        others=others,
        attention=others if attention == "auto" else attention,
        direct=direct,
    )


def project(run: Run, normed: Tensor, attention: SelfAttention) -> tuple[Tensor, Tensor, Tensor]:
    """normed [T, D] -> query, key and value [T, H, d]."""
    parts, heads = attention.project, attention.heads
    if not isinstance(parts, tuple):
        joined = product(run, normed, parts)
        return joined.view(joined.shape[0], 3, heads, joined.shape[1] // (3 * heads)).unbind(1)
    if run.buffer is None or not all(isinstance(part, Linear) for part in parts):
        query, key, value = [part(normed) for part in parts]
        width = equal_width((query.shape[-1], key.shape[-1], value.shape[-1])) // heads
        return query.view(-1, heads, width), key.view(-1, heads, width), value.view(-1, heads, width)
    count, columns = normed.shape[0], equal_width(part.weight.shape[0] for part in parts)
    joined = run.buffer.as_strided((count, 3 * columns), (3 * columns, 1))
    for n, part in enumerate(parts):
        _multiply(normed, part.weight, part.bias, joined[:, n * columns : (n + 1) * columns])
    return joined.unflatten(-1, (3, heads, -1)).unbind(1)


def equal_width(widths: Iterable[int]) -> int:
    """The one width that query, key and value have."""
    query, key, value = widths
    if not query == key == value:
        raise ValueError(
            f"SelfAttention.project: query {query}, key {key} and value {value} wide must be equal"
        )
    return query


def inner_of(run: Run, normed: Tensor, mlp: Mlp) -> Tensor:
    """act(fc1(normed)) [T, F], times the value of a gated one."""
    fc1, activation = mlp.fc1, mlp.activation
    approximate = _GELU.get(activation.kind)
    if activation.gate is not None or approximate is None:
        gate, value = activation.parts(*_halves(run, normed, mlp))
        return activated(run, gate, value, activation.kind, in_place=run.direct and raw_fc1(mlp))
    if not run.direct or not isinstance(fc1, Linear):
        return F.gelu(fc1(normed), approximate=approximate)
    chosen = choose_mlp(run.others, normed, fc1.bias, False, activation.kind)
    if chosen == "reference":
        return torch.ops.aten.gelu_(product(run, normed, fc1), approximate=approximate)
    shape, buffer = (normed.shape[0], fc1.weight.shape[0]), run.buffer
    out = None if buffer is None else buffer.as_strided(shape, (shape[1], 1))
    return kernels("mlp", chosen).linear_gelu(normed, fc1, out, kind=activation.kind)


def raw_fc1(mlp: Mlp) -> bool:
    """Whether what fc1 gives is nobody else's: a hook of a module may have kept it."""
    fc1 = mlp.fc1 if isinstance(mlp.fc1, tuple) else (mlp.fc1,)
    return all(isinstance(part, Linear) for part in fc1)


def _halves(run: Run, normed: Tensor, mlp: Mlp) -> tuple[Tensor, ...]:
    """What fc1 of a gated one gives: by raw weights each half alone, one behind the other in the buffer."""
    fc1 = mlp.fc1
    if isinstance(fc1, Linear) and mlp.activation.gate is not None:
        biases = (None, None) if fc1.bias is None else fc1.bias.chunk(2)
        fc1 = tuple(map(Linear, fc1.weight.chunk(2), biases))
    if not isinstance(fc1, tuple):
        return (product(run, normed, fc1),)
    first = product(run, normed, fc1[0])
    taken = first.numel() if isinstance(fc1[0], Linear) else 0
    rest = None if run.buffer is None else run.buffer[taken:]
    return first, product(run, normed, fc1[1], rest)


def joined_fc1(mlp: Mlp) -> Product:
    """fc1 as one product: [T, D] -> [T, F], both halves of a gated one side by side [T, 2F]."""

    def joined(normed: Tensor) -> Tensor:
        return torch.cat([part(normed) for part in mlp.fc1], dim=-1)

    return joined if isinstance(mlp.fc1, tuple) else mlp.fc1


def activated(run: Run, gate: Tensor, value: Tensor | None, kind: str, in_place: bool = False) -> Tensor:
    """act(gate), times value [T, F]; `in_place`: in the memory of gate."""
    if value is None and kind in _GELU:
        return F.gelu(gate, approximate=_GELU[kind])
    if value is not None and value.shape != gate.shape:
        raise ValueError(f"Mlp.fc1: halves {tuple(gate.shape)} and {tuple(value.shape)} must be equal")
    value = None if value is None else value.to(gate.dtype)
    return run_activation(run, Gated(gate, value, kind), gate if in_place else None)


def mlp_branch(run: Run, normed: Tensor, mlp, rows) -> Tensor:
    """The MLP's output [T, D] of rows that are not routed."""
    if isinstance(mlp, Mlp):
        return product(run, inner_of(run, normed, mlp), mlp.fc2)
    return mlp(normed) if isinstance(mlp, nn.Module) else mlp(normed, rows)


def product(run: Run, inputs: Tensor, linear: Product, out: Tensor | None = None) -> Tensor:
    """linear(inputs) [T, F]; where the run has a buffer, by raw weights into `out` or its start."""
    if not isinstance(linear, Linear) or run.buffer is None:
        return linear(inputs)
    weight, bias = linear.weight, linear.bias
    columns, width = weight.shape
    out = (run.buffer if out is None else out).as_strided((inputs.shape[0], columns), (columns, 1))
    # The CPU's sgemm is faster, and as fast with few rows as with many, on slabs of about D columns.
    if inputs.device.type == "cpu" and inputs.dtype == torch.float32 and inputs.shape[0] >= 128:
        for first in range(0, columns, width):
            slab = slice(first, first + width)
            _multiply(inputs, weight[slab], None if bias is None else bias[slab], out[:, slab])
        return out
    return _multiply(inputs, weight, bias, out)


def _multiply(rows: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    if bias is None:
        return torch.mm(rows, weight.t(), out=out)
    return torch.addmm(bias, rows, weight.t(), out=out)


def fuses(run: Run, kernel: str, like: Tensor, rows: int, linear: Product | None) -> bool:
    """Whether a product of so many rows, of the dtype and device of `like`, takes the Triton kernel that has
    a row step as its epilogue: always where Triton was asked for, else where the table says that it is
    faster."""
    if not run.direct or not isinstance(linear, Linear) or run.others == "reference":
        return False
    if run.others == "triton":
        return True
    columns, inner = linear.weight.shape
    return like.device.type == "cuda" and takes_ours(kernel, like.dtype, like.device, columns, rows, inner)
