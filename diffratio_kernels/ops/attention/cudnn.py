"""Packed attention through cuDNN, by torch's scaled_dot_product_attention. Autograd sees through it."""

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...types import Seqlens
from . import sdpa


def attention(query: Tensor, key: Tensor, value: Tensor, seqlens: Seqlens, scale: float | None) -> Tensor:
    """query [T, H, d]; key, value [S, h, d] -> [T, H, d]."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return sdpa.attention(query, key, value, seqlens, scale)
