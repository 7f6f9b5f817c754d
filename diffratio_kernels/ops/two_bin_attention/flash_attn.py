"""`two_bin_attention` as two passes of the backend flash_attn of `attention`."""

from torch import Tensor

from ...types import Nested
from ..attention.flash_attn import attention
from .two_passes import two_passes


def two_bin_attention(
    query: Tensor, key: Tensor, value: Tensor, nested: Nested, scale: float | None
) -> Tensor:
    """query, key, value [T, H, d] -> [T + S, H, d]."""
    return two_passes(attention, query, key, value, nested, scale)
