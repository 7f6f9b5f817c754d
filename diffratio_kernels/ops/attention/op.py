"""`attention`: packed (varlen) attention, self and cross."""

import torch
from torch import Tensor

from ..._backends import choose, kernels
from ..._checks import Check, readable
from ..._register import first_order, register
from ...types import Run, Seqlens


class _Attention(torch.autograd.Function):
    """The Triton kernels; the other backends are differentiable themselves."""

    @staticmethod
    def forward(
        ctx, query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, key_lengths, scale
    ):
        out, lse = torch.ops.diffratio.attention_with_lse(
            query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, key_lengths, scale
        )
        ctx.save_for_backward(query, key, value, out, lse, cu_seqlens_q, cu_seqlens_k, key_lengths)
        ctx.options = max_seqlen_q, max_seqlen_k, scale
        return out

    @staticmethod
    @first_order
    def backward(ctx, grad_out):
        *tensors, cu_seqlens_q, cu_seqlens_k, key_lengths = ctx.saved_tensors
        max_seqlen_q, max_seqlen_k, scale = ctx.options
        grads = torch.ops.diffratio.attention_backward(
            grad_out, *tensors, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, key_lengths, scale,
        )  # fmt: skip
        return *grads, None, None, None, None, None, None


def _check(query: Tensor, key: Tensor, value: Tensor, seqlens: Seqlens, scale: float | None) -> None:
    cu_seqlens_q, cu_seqlens_k = seqlens.cu_seqlens_q, seqlens.cu_seqlens_k
    max_seqlen_q, max_seqlen_k, key_lengths = seqlens.max_seqlen_q, seqlens.max_seqlen_k, seqlens.key_lengths
    check = Check("attention")
    check.tensor("query", query, "T H d")
    check.tensor("key", key, "S H d", dtype_of=("query", query))
    check.tensor("value", value, "S H d", dtype_of=("query", query))
    check.tensor("cu_seqlens_q", cu_seqlens_q, "B+1", dtypes=(torch.int32,))
    check.tensor("cu_seqlens_k", cu_seqlens_k, "B+1", dtypes=(torch.int32,))
    check.optional("key_lengths", key_lengths, "B", dtypes=(torch.int32,))
    samples = cu_seqlens_q.shape[0] - 1
    if samples < 0:
        check.fail("cu_seqlens_q must hold B+1 values, got none")
    if key_lengths is not None and key_lengths.shape[0] != samples:
        check.fail(f"key_lengths must hold {samples} values (one per sample), got {key_lengths.shape[0]}")
    if query.shape[2] % 8 or query.shape[2] == 0:
        check.fail(f"query has head_dim {query.shape[2]}, must be a positive multiple of 8")
    if scale is not None:
        check.positive("scale", scale)
    for name, longest, rows in (
        ("max_seqlen_q", max_seqlen_q, query.shape[0]),
        ("max_seqlen_k", max_seqlen_k, key.shape[0]),
    ):
        if longest < 0 or longest > rows or longest * samples < rows:
            check.fail(f"{name}={longest} cannot be the longest of {samples} samples with {rows} rows in all")
    _check_values(check, "cu_seqlens_q", cu_seqlens_q, query.shape[0], max_seqlen_q)
    _check_values(check, "cu_seqlens_k", cu_seqlens_k, key.shape[0], max_seqlen_k)
    if key_lengths is not None and readable(key_lengths):
        room = cu_seqlens_k.diff()
        if (key_lengths < 0).any() or (key_lengths > room).any():
            check.fail(f"key_lengths={key_lengths.tolist()} must be in 0..{room.tolist()}")


def _check_values(check: Check, name: str, offsets: Tensor, rows: int, longest: int):
    if not readable(offsets):
        return
    values = offsets.tolist()
    steps = [b - a for a, b in zip(values, values[1:], strict=False)]
    if values[0] != 0 or values[-1] != rows or any(not 0 <= step <= longest for step in steps):
        limit = f"max_seqlen_{name[-1]}={longest}"
        check.fail(f"{name}={values} must rise from 0 to {rows} in steps of at most {limit}")


LARGEST_HEAD_DIM = 256
"""Of the Triton kernels."""


def choose_attention(backend: str, query: Tensor) -> str:
    """The backend for these queries; "auto" leaves heads too wide for the Triton kernels to torch."""
    if backend == "auto" and query.shape[2] > LARGEST_HEAD_DIM:
        backend = "sdpa"
    return choose("attention", backend, query.device, query.dtype)


def _attention(
    query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
    *, key_lengths=None, scale=None, backend="auto",
):  # fmt: skip
    seqlens = Seqlens(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, key_lengths)
    _check(query, key, value, seqlens, scale)
    return (
        kernels("attention", choose_attention(backend, query))
        .attention(query, key, value, seqlens, scale)
        .contiguous()
    )


def _attention_differentiable(
    query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
    *, key_lengths=None, scale=None, backend="auto",
):  # fmt: skip
    seqlens = Seqlens(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, key_lengths)
    _check(query, key, value, seqlens, scale)
    chosen = choose_attention(backend, query)
    if chosen != "triton":  # autograd sees through the others
        return kernels("attention", chosen).attention(query, key, value, seqlens, scale).contiguous()
    flat = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, key_lengths
    return _Attention.apply(query, key, value, *flat, scale)


def _attention_with_lse(
    query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, key_lengths, scale
):
    seqlens = Seqlens(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, key_lengths)
    return kernels("attention", "triton").attention(query, key, value, seqlens, scale, save_lse=True)


def _attention_backward(
    grad_out, query, key, value, out, lse, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
    key_lengths, scale,
):  # fmt: skip
    seqlens = Seqlens(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, key_lengths)
    backward = kernels("attention", "triton").attention_backward
    return backward(grad_out, query, key, value, out, lse, seqlens, scale)


def _fake(
    query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
    *, key_lengths=None, scale=None, backend="auto",
):  # fmt: skip
    seqlens = Seqlens(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, key_lengths)
    _check(query, key, value, seqlens, scale)
    return query.new_empty(query.shape)


def _fake_with_lse(query, *args):
    lse = query.new_empty(query.shape[1], query.shape[0], dtype=torch.float32)
    return query.new_empty(query.shape), lse


def _fake_backward(grad_out, query, key, value, *args):
    return tuple(t.new_empty(t.shape) for t in (query, key, value))


def _autocast(query, key, value, *args, **kwargs):
    dtype = torch.get_autocast_dtype(query.device.type)
    with torch.autocast(query.device.type, enabled=False):
        return torch.ops.diffratio.attention(query.to(dtype), key.to(dtype), value.to(dtype), *args, **kwargs)


register(
    "attention(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
    "SymInt max_seqlen_q, SymInt max_seqlen_k, *, Tensor? key_lengths=None, float? scale=None, "
    'str backend="auto") -> Tensor',
    kernel=_attention,
    fake=_fake,
    differentiable=_attention_differentiable,
    autocast=_autocast,
)
register(
    "attention_with_lse(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
    "SymInt max_seqlen_q, SymInt max_seqlen_k, Tensor? key_lengths, float? scale) -> (Tensor, Tensor)",
    kernel=_attention_with_lse,
    fake=_fake_with_lse,
)
register(
    "attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, "
    "Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, "
    "Tensor? key_lengths, "
    "float? scale) -> (Tensor, Tensor, Tensor)",
    kernel=_attention_backward,
    fake=_fake_backward,
)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    key_lengths: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """softmax(q k^T * scale) v within each sample of a packed batch.

    Args:
        query: [T, H, d], d a multiple of 8.
        key, value: [S, H, d] in the dtype of query.
        cu_seqlens_q, cu_seqlens_k: int32 [B+1]; sample b owns rows offsets[b]:offsets[b+1].
        max_seqlen_q, max_seqlen_k: rows of the longest sample, known to the host.
        key_lengths: int32 [B], only the first ones of a sample's keys count (padded text); 0 gives zeros.
        scale: of the products; None is 1/sqrt(d).
        backend: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        [T, H, d] in the dtype of query.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or a backend that cannot run here.

    Example:
        >>> longest = 180  # of the kept counts
        >>> out = attention(q, k, v, cu_seqlens, cu_seqlens, longest, longest)
    """
    return torch.ops.diffratio.attention(
        query,
        key,
        value,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        key_lengths=key_lengths,
        scale=scale,
        backend=backend,
    )


def run_attention(
    run: Run, backend: str, query: Tensor, key: Tensor, value: Tensor, seqlens: Seqlens
) -> Tensor:
    """`attention` as blocks run it: [T, H, d] -> [T, H d]."""
    if run.direct:
        module = kernels("attention", choose_attention(backend, query))
        return module.attention(query, key, value, seqlens, None).flatten(1)
    return torch.ops.diffratio.attention(
        query, key, value, seqlens.cu_seqlens_q, seqlens.cu_seqlens_k, seqlens.max_seqlen_q,
        seqlens.max_seqlen_k, key_lengths=seqlens.key_lengths, backend=backend,
    ).flatten(1)  # fmt: skip
