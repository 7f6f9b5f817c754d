"""Packed attention through the flash-attn package. Autograd sees through it."""

from torch import Tensor

from ...types import Seqlens


def attention(query: Tensor, key: Tensor, value: Tensor, seqlens: Seqlens, scale: float | None) -> Tensor:
    """query [T, H, d]; key, value [S, h, d] -> [T, H, d]; takes no key_lengths."""
    from flash_attn import flash_attn_varlen_func

    if seqlens.key_lengths is not None:
        raise ValueError("attention: backend='flash_attn' takes no key_lengths")
    cu_seqlens = seqlens.cu_seqlens_q, seqlens.cu_seqlens_k
    longest = seqlens.max_seqlen_q, seqlens.max_seqlen_k
    return flash_attn_varlen_func(query, key, value, *cu_seqlens, *longest, softmax_scale=scale).contiguous()
