"""What operators that end a branch share where it is normed before its gate."""

from collections.abc import Sequence

from torch import Tensor

from .._checks import Check
from ..types import RowNorm

NORMS = ("none", "rms", "layer")
VECTORS = ("norm_weight", "norm_bias")
SCHEMA = 'str norm="none", Tensor? norm_weight=None, Tensor? norm_bias=None, float norm_eps=1e-6'


def check_norm(check: Check, norm: str, weight: Tensor | None, bias: Tensor | None, eps: float):
    """The arguments of SCHEMA; D is bound."""
    check.choice("norm", norm, NORMS)
    for name, value in zip(VECTORS, (weight, bias), strict=True):
        if value is not None and norm == "none":
            check.fail(f"{name} needs a norm")
        check.optional(name, value, "D")
    if norm != "none":
        check.positive("norm_eps", eps)


def bundled(norm: str, weight: Tensor | None, bias: Tensor | None, eps: float) -> RowNorm | None:
    """The arguments of SCHEMA as backends take them."""
    return None if norm == "none" else RowNorm(norm, weight, bias, eps)


def flat(norm: RowNorm | None) -> dict:
    """The arguments of SCHEMA by name."""
    if norm is None:
        return {}
    return {
        "norm": norm.kind, "norm_weight": norm.weight, "norm_bias": norm.bias, "norm_eps": norm.eps,
    }  # fmt: skip


def named(names: Sequence[str], given: Sequence[Tensor | None], found: Sequence[Tensor]) -> dict[str, Tensor]:
    """Gradients by the names of the arguments, but of those that were not given."""
    return {name: grad for name, t, grad in zip(names, given, found, strict=True) if t is not None}


def without_none(found: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Gradients as an operator returns them: empty where there is none."""
    return tuple(found[0].new_empty(0) if t is None else t for t in found)


def gradients(
    gate: Tensor, norm: RowNorm | None, normed: Tensor, plain: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of gate [B, D] and of the norm's weight and bias.

    A row ends in gate * (n * weight + bias), n the branch normalised, or in gate * n without a norm.

    Args:
        gate, norm: as they were given.
        normed: [B, D], of each gate's rows the sum of their gradient times n.
        plain: [B, D], the sum of their gradient; None without a bias.
    """
    if norm is None:
        return normed, None, None
    grad_gate, gate = normed, gate.to(normed.dtype)
    grad_weight = grad_bias = None
    if norm.weight is not None:
        grad_gate, grad_weight = normed * norm.weight.to(normed.dtype), (gate * normed).sum(0)
    if norm.bias is not None:
        grad_gate, grad_bias = grad_gate + plain * norm.bias.to(plain.dtype), (gate * plain).sum(0)
    return grad_gate, grad_weight, grad_bias
