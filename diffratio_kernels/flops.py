"""FLOPs of the operators for torch's `FlopCounterMode`, which does not look into custom operators.

Importing this registers them; routing a model does. It is not part of `import diffratio_kernels`, because
torch's counter imports Triton. Counted are products and attention, as for torch's own operators, and padded
text that `key_lengths` leaves out counts, as it does under torch's masks. With a gradient torch counts the
steps inside of an operator itself.
"""

from math import prod

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

_ops = torch.ops.diffratio


@register_flop_formula([_ops.attention, _ops.attention_with_lse], get_raw=True)
def _attention(query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *_, **__) -> int:
    lengths_q, lengths_k = _lengths(cu_seqlens_q, max_seqlen_q), _lengths(cu_seqlens_k, max_seqlen_k)
    pairs = sum(q * k for q, k in zip(lengths_q, lengths_k, strict=True))
    return 4 * query.shape[1] * query.shape[2] * pairs


@register_flop_formula(_ops.attention_backward, get_raw=True)
def _attention_backward(grad_out, query, key, value, out, lse, *seqlens, **_) -> int:
    return _attention(query, key, value, *seqlens) * 5 // 2  # five products, the forward pass has two


@register_flop_formula([_ops.two_bin_attention, _ops.two_bin_attention_with_lse], get_raw=True)
def _two_bin_attention(
    query, key, value, cu_seqlens_large, cu_seqlens_small, max_seqlen_large, max_seqlen_small, *_, **__
) -> int:
    large, small = _lengths(cu_seqlens_large, max_seqlen_large), _lengths(cu_seqlens_small, max_seqlen_small)
    return 4 * query.shape[1] * query.shape[2] * sum(length**2 for length in (*large, *small))


@register_flop_formula(_ops.two_bin_attention_backward, get_raw=True)
def _two_bin_attention_backward(grad_out, query, key, value, out, lse, *nested, **_) -> int:
    return _two_bin_attention(query, key, value, *nested) * 5 // 2


@register_flop_formula(_ops.route)
def _route(x, *_, **__) -> int:
    return 0 if x is None else 2 * prod(x)


@register_flop_formula(_ops.mlp)
def _mlp(rows, fc1_weight, fc1_bias, fc2_weight, *_, **__) -> int:
    return 2 * rows[0] * (prod(fc1_weight) + prod(fc2_weight))


@register_flop_formula([_ops.linear_gelu, _ops.linear_gelu_backward])
def _one_product(rows, weight, *_, **__) -> int:
    return _product(rows, weight)


@register_flop_formula(_ops.mod_block, get_raw=True)
def _mod_block(x, router_weight, keep, modulation, *weights, context_kv=None, **_) -> int:
    return _block(x, keep, [], weights, context_kv)


@register_flop_formula(_ops.two_bin_block, get_raw=True)
def _two_bin_block(
    x, router_weight, keep_small, keep_large, weight_large, modulation, *weights, context_kv=None, **_
) -> int:
    return _block(x, keep_large, keep_small, weights, context_kv)


def _block(x: Tensor, keep, keep_small, weights, context_kv: Tensor | None) -> int:
    """The router runs on all tokens, qkv and fc2 on the rows of the large bin, the steps between them on
    those of both bins."""
    (samples, _, width), hidden = x.shape, weights[4].shape[0]
    counts, small = (list(kept) * (samples // len(kept) if kept else 1) for kept in (keep, keep_small))
    if not any(counts):
        return 0
    both = counts + small
    between = width + hidden  # columns of out and fc1
    if context_kv is not None:
        between += 2 * width + 2 * context_kv.shape[1]  # query, out, and attention to the text
    products = sum(counts) * (3 * width + hidden) + sum(both) * between
    return 2 * width * (x.shape[1] * samples + products + 2 * sum(count**2 for count in both))


def _product(rows: tuple[int, ...], weight: tuple[int, ...]) -> int:
    return 2 * rows[0] * weight[0] * weight[1]


def _lengths(cu_seqlens: Tensor, longest: int) -> list[int]:
    """Rows of each sample; where they have no values to read, the longest sample's."""
    if type(cu_seqlens) is not Tensor or cu_seqlens.is_meta:
        return [longest] * (cu_seqlens.shape[0] - 1)
    return cu_seqlens.diff().tolist()
