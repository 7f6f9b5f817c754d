"""Packed attention through torch.nn.attention.varlen (torch 2.11 or later). Autograd sees through it."""

from torch import Tensor

from ...types import Seqlens


def attention(query: Tensor, key: Tensor, value: Tensor, seqlens: Seqlens, scale: float | None) -> Tensor:
    """query [T, H, d]; key, value [S, h, d] -> [T, H, d]; takes no key_lengths."""
    from torch.nn.attention.varlen import varlen_attn

    if seqlens.key_lengths is not None:
        raise ValueError("attention: backend='varlen' takes no key_lengths")
    cu_seqlens = seqlens.cu_seqlens_q, seqlens.cu_seqlens_k
    longest = seqlens.max_seqlen_q, seqlens.max_seqlen_k
    grouped = {} if query.shape[1] == key.shape[1] else {"enable_gqa": True}  # an argument since torch 2.12
    return varlen_attn(query, key, value, *cu_seqlens, *longest, scale=scale, **grouped).contiguous()
