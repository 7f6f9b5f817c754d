"""`two_bin_attention` in eager PyTorch."""

from torch import Tensor

from ...types import Nested
from ..attention.reference import attention
from .two_passes import two_passes


def two_bin_attention(
    query: Tensor, key: Tensor, value: Tensor, nested: Nested, scale: float | None = None
) -> Tensor:
    """Attention among each sample's large set [T] and among its small set, the prefix [S]: [T + S, H, d].

    query [T, H, d]; key, value [T, h, d].
    """
    return two_passes(attention, query, key, value, nested, scale)
