"""Norms whose weights are all that they compute: by these a routed block computes them itself."""

from collections.abc import Callable

from diffusers.models.normalization import FP32LayerNorm, RMSNorm
from torch import Tensor, nn

from diffratio_kernels.types import HeadNorm, RowNorm

from .inspection import hooked, patched, remember

_NORMS = (nn.RMSNorm, RMSNorm, nn.LayerNorm, FP32LayerNorm)
remember(*_NORMS)


def plain_norm(module: nn.Module) -> bool:
    """Whether a module is a norm that its class, weight and bias describe."""
    cls = type(module)
    return cls in _NORMS and module.eps is not None and not (hooked(module) or patched(cls))


def head_norm(query: nn.Module, key: nn.Module, across_heads: bool) -> HeadNorm:
    """The plain norms of query and key, of one eps."""
    weights = query.weight, key.weight, _bias(query), _bias(key)
    return HeadNorm(_kind(query), *weights, query.eps, across_heads)


def row_norm(norm: nn.Module) -> RowNorm:
    """A plain norm of rows."""
    return RowNorm(_kind(norm), norm.weight, _bias(norm), norm.eps)


def in_float(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """A norm that reads its rows in fp32."""

    def normed(rows: Tensor) -> Tensor:
        return norm(rows.float()).to(rows.dtype)

    return normed


def _kind(norm: nn.Module) -> str:
    return "layer" if isinstance(norm, nn.LayerNorm) else "rms"


def _bias(norm: nn.Module) -> nn.Parameter | None:
    return getattr(norm, "bias", None)
