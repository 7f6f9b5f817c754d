"""The routed DiT block F(x, k) and the differentiable ratio in eager PyTorch, step by step (paper sections
3.2 and 3.3, and the authors' pseudo-code): any float dtype, differentiable, no kernels. The oracle of every
test."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.adaln.reference import adaln, gather_adaln
from ..ops.attention.reference import attention
from ..ops.gate_residual.reference import gate_residual
from ..ops.route.reference import accumulation_dtype, cu_seqlens_of, router_logits, select_tokens
from ..ops.scatter_rescale.reference import scatter_rescale
from ..types import Finish, PackedRows, Rescale, Seqlens


def mod_block(
    x: Tensor,
    router_weight: Tensor,
    keep: list[int],
    modulation: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    num_heads: int,
    *,
    router_bias: Tensor | None = None,
    context_kv: Tensor | None = None,
    context_lengths: Tensor | None = None,
    cross_q_weight: Tensor | None = None,
    cross_q_bias: Tensor | None = None,
    cross_out_weight: Tensor | None = None,
    cross_out_bias: Tensor | None = None,
    rescale: str = "mlp",
    score_scale: float = 1.0,
    eps: float = 1e-6,
    mlp_eps: float | None = None,
    index: Tensor | None = None,
) -> Tensor:
    """F(x, keep): see `torch.ops.diffratio.mod_block` for the arguments; `keep` holds B ints here."""
    batch, tokens, width = x.shape
    if sum(keep) == 0:
        return x.clone()
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(1)
    logits = router_logits(x, router_weight, router_bias)
    if index is None:
        index, cu_seqlens = select_tokens(logits.detach(), keep)
    else:
        cu_seqlens = cu_seqlens_of(keep, x.device)
    rows = PackedRows(index, tokens, keep, cu_seqlens)

    hidden, normed = gather_adaln(x, rows, shift1, scale1, eps)
    qkv = F.linear(normed, qkv_weight, qkv_bias).unflatten(-1, (3, num_heads, -1))
    among = Seqlens(cu_seqlens, cu_seqlens, max(keep), max(keep))
    attended = attention(*qkv.unbind(1), among).flatten(1)
    hidden = gate_residual(hidden, F.linear(attended, out_weight, out_bias), gate1, rows)

    if context_kv is not None:
        length = context_kv.shape[1]
        query = F.linear(hidden, cross_q_weight, cross_q_bias).unflatten(-1, (num_heads, -1))
        key, value = context_kv.flatten(0, 1).unflatten(-1, (num_heads, -1)).unbind(1)
        cu_seqlens_k = cu_seqlens_of([length] * batch, x.device)
        to_text = Seqlens(cu_seqlens, cu_seqlens_k, max(keep), length, context_lengths)
        attended = attention(query, key, value, to_text).flatten(1)
        hidden = hidden + F.linear(attended, cross_out_weight, cross_out_bias)

    normed = adaln(hidden, rows, shift2, scale2, eps if mlp_eps is None else mlp_eps)
    inner = F.gelu(F.linear(normed, fc1_weight, fc1_bias), approximate="tanh")
    branch = F.linear(inner, fc2_weight, fc2_bias)
    return scatter_rescale(Finish(x, rows, hidden, branch, gate2, logits, Rescale(rescale, score_scale)))


def two_bin_block(
    x: Tensor,
    router_weight: Tensor,
    keep_small: list[int],
    keep_large: list[int],
    weight_large: Tensor,
    *args,
    index: Tensor | None = None,
    **kwargs,
) -> Tensor:
    """w_a F(x, k_a) + w_b F(x, k_b) as two separate passes: the definition, not the way to compute it.

    weight_large [B] is w_b (differentiable), w_a = 1 - w_b; `index` [T], a selection of both bins; other
    arguments as in `mod_block`.
    """
    dtype = accumulation_dtype(x.dtype)
    weight = weight_large.to(dtype)[:, None, None]
    prefix = None
    if index is not None:
        parts = zip(index.split(keep_large), keep_small, strict=True)
        prefix = torch.cat([rows[:k] for rows, k in parts]) if keep_small else index
    small = mod_block(x, router_weight, keep_small, *args, index=prefix, **kwargs).to(dtype)
    large = mod_block(x, router_weight, keep_large, *args, index=index, **kwargs).to(dtype)
    return ((1 - weight) * small + weight * large).to(x.dtype)
