"""The routed DiT block F(x, k), step by step (paper section 3.2 and the authors' pseudo-code)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .attention import attention
from .routing import accumulation_dtype, packed_offsets, route


def adaln(rows: Tensor, index: Tensor, tokens: int, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LN(rows) * (1 + scale) + shift, with the shift and scale of each row's own sample.

    rows [T, D]; index [T] (row t belongs to sample index[t] // tokens); shift, scale [B, D].
    LN has no affine; statistics in at least fp32, one rounding at the end.
    """
    dtype = accumulation_dtype(rows.dtype)
    sample = index // tokens
    normed = F.layer_norm(rows.to(dtype), rows.shape[-1:], eps=eps)
    return (normed * (1 + scale.to(dtype)[sample]) + shift.to(dtype)[sample]).to(rows.dtype)


def gather_adaln(x: Tensor, index: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The kept rows of x [B, N, D], and the same rows after adaLN: two tensors [T, D]."""
    rows = x.flatten(0, 1)[index]
    return rows, adaln(rows, index, x.shape[1], shift, scale, eps)


def gate_residual(rows: Tensor, branch: Tensor, gate: Tensor, index: Tensor, tokens: int) -> Tensor:
    """rows + gate * branch, gate [B, D] of each row's own sample."""
    dtype = accumulation_dtype(rows.dtype)
    return (rows.to(dtype) + gate.to(dtype)[index // tokens] * branch.to(dtype)).to(rows.dtype)


def scatter_rescale(
    x: Tensor,
    index: Tensor,
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    logits: Tensor,
    rescale: str = "mlp",
    score_scale: float = 1.0,
) -> Tensor:
    """Finish the kept rows and put them back into a copy of x [B, N, D]; other rows stay as they are.

    With y = hidden + gate * branch and s = score_scale * sigmoid(logit), row i becomes
    "mlp": hidden + s * gate * branch; "residual": x_i + s * (y - x_i); "output": s * y; "none": y.
    hidden, branch [T, D]; gate [B, D]; logits [B, N].
    """
    batch, tokens, width = x.shape
    dtype = accumulation_dtype(x.dtype)
    flat = x.reshape(-1, width)
    score = (score_scale * logits.reshape(-1)[index].to(dtype).sigmoid())[:, None]
    update = gate.to(dtype)[index // tokens] * branch.to(dtype)
    hidden = hidden.to(dtype)
    if rescale == "mlp":
        rows = hidden + score * update
    elif rescale == "residual":
        kept = flat[index].to(dtype)
        rows = kept + score * (hidden + update - kept)
    elif rescale == "output":
        rows = score * (hidden + update)
    elif rescale == "none":
        rows = hidden + update
    else:
        raise ValueError(f"rescale={rescale!r} must be one of 'mlp', 'residual', 'output', 'none'")
    return flat.index_copy(0, index, rows.to(x.dtype)).reshape(x.shape)


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
    index, offsets, logits = route(x, router_weight, keep, router_bias, index)

    rows, normed = gather_adaln(x, index, shift1, scale1, eps)
    qkv = F.linear(normed, qkv_weight, qkv_bias).unflatten(-1, (3, num_heads, -1))
    attended = attention(*qkv.unbind(1), offsets, offsets, max(keep), max(keep)).flatten(1)
    hidden = gate_residual(rows, F.linear(attended, out_weight, out_bias), gate1, index, tokens)

    if context_kv is not None:
        length = context_kv.shape[1]
        query = F.linear(hidden, cross_q_weight, cross_q_bias).unflatten(-1, (num_heads, -1))
        key, value = context_kv.flatten(0, 1).unflatten(-1, (num_heads, -1)).unbind(1)
        context_offsets = packed_offsets([length] * batch, x.device)
        attended = attention(
            query, key, value, offsets, context_offsets, max(keep), length, context_lengths
        ).flatten(1)
        hidden = hidden + F.linear(attended, cross_out_weight, cross_out_bias)

    normed = adaln(hidden, index, tokens, shift2, scale2, eps if mlp_eps is None else mlp_eps)
    inner = F.gelu(F.linear(normed, fc1_weight, fc1_bias), approximate="tanh")
    branch = F.linear(inner, fc2_weight, fc2_bias)
    return scatter_rescale(x, index, hidden, branch, gate2, logits, rescale, score_scale)
