"""diffusers' attention modules in the terms of the routed block."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from diffratio_kernels.blocks.joint import rotated
from diffratio_kernels.blocks.stream import Branch
from diffratio_kernels.types import Linear, PackedRows, Product, Rope

from .inspection import foreign, foreign_dropout, patched, remember

remember(Attention, AttnProcessor2_0)


def by_count(
    module: Callable[..., Tensor],
    values: Tensor | tuple[Tensor, ...],
    rows: PackedRows,
    *per_sample: Tensor | None,
) -> Tensor:
    """Call a module that wants samples [b, k, D] on packed rows: samples of equal counts together.

    Args:
        module: given [b, k, D], of each of the values, and what follows.
        values: packed rows [T, D], or several.
        rows: which rows these are.
        per_sample: tensors [B, ...] or None, of which each call gets those of its samples.

    Returns:
        [T, D].

    Example:
        >>> from diffratio_kernels.types import PackedRows
        >>> attend = nn.Identity()  # a module that wants [b, k, D]
        >>> out = by_count(attend, hidden, PackedRows(index, N, [180, 180]))
    """
    values = values if isinstance(values, tuple) else (values,)
    if not any(rows.counts):
        return values[0]
    if rows.uniform is not None:
        samples = (value.unflatten(0, (-1, rows.uniform)) for value in values)
        return module(*samples, *per_sample).flatten(0, 1)
    parts, done = [value.split(rows.counts) for value in values], {}
    for count in sorted(set(rows.counts) - {0}):
        samples = [b for b, kept in enumerate(rows.counts) if kept == count]
        packed = (torch.stack([part[b] for b in samples]) for part in parts)
        given = (t if t is None or t.shape[0] == 1 else t[samples] for t in per_sample)
        done.update(zip(samples, module(*packed, *given).unbind(0), strict=True))
    return torch.cat([done[b] for b in sorted(done)])


def softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Heads [b, k, H, d] to [b, M, h, d], which a number of queries share: what `by_count` may call.

    mask: [b, M] bool, the keys that count.
    """
    share = query.shape[2] // key.shape[2]
    key, value = (t.repeat_interleave(share, dim=2) if share > 1 else t for t in (key, value))
    query, key, value = (t.to(query.dtype).transpose(1, 2) for t in (query, key, value))
    mask = None if mask is None else mask[:, None, None]
    return F.scaled_dot_product_attention(query, key, value, mask, scale=scale).transpose(1, 2)


def attention_to(
    attn: nn.Module, text: Tensor, rope: Rope | None = None, mask: Tensor | None = None
) -> Branch:
    """What rows take of a text [B, M, .] by the layers of a module of diffusers that norms each head; their
    queries turn.

    mask: [B, M] bool, the tokens that count.
    """
    key, value = (layer(text).unflatten(-1, (attn.heads, -1)) for layer in (attn.to_k, attn.to_v))
    key = normed_by(attn.norm_k, key)

    def branch(x: Tensor, rows: PackedRows) -> Tensor:
        query = normed_by(attn.norm_q, attn.to_q(x).unflatten(-1, (attn.heads, -1)))
        query = query if rope is None else rotated(rope, query, rows)
        attended = by_count(softmax_attention, query, rows, key, value, mask)
        return attn.to_out[1](attn.to_out[0](attended.flatten(1)))

    return branch


def normed_by(norm: nn.Module | None, x: Tensor) -> Tensor:
    """x by a norm that a module may lack."""
    return x if norm is None else norm(x)


def product_of(module: nn.Module, raw: bool) -> Product:
    """A Linear's weights where they are the whole truth, else the module itself."""
    return Linear(module._parameters["weight"], module._parameters["bias"]) if raw else module


def foreign_attention(name: str, attention: nn.Module) -> str | None:
    """Why the module of a name is not the plain attention of its four Linears, None where it is."""
    reason = foreign(attention, Attention) or _unknown(attention)
    if reason is None:
        name, reason = f"{name}.to_out.1", foreign_dropout(attention.to_out[1])
    return None if reason is None else f"{name}: {reason}"


def _unknown(attention: Attention) -> str | None:
    if type(attention.processor) is not AttnProcessor2_0:
        return f"its processor is {type(attention.processor).__name__}"
    extras = ("spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross", "added_kv_proj_dim")
    if any(getattr(attention, extra) is not None for extra in extras):
        return "it has norms or projections of its own"
    if attention.residual_connection or attention.rescale_output_factor != 1.0:
        return "it adds a residual or rescales"
    if attention.inner_dim != attention.out_dim or attention.inner_kv_dim != attention.inner_dim:
        return "its widths differ"
    head_dim = attention.inner_dim // attention.heads
    if head_dim % 8:
        return f"head_dim {head_dim} is not a multiple of 8"
    return patched(AttnProcessor2_0)
