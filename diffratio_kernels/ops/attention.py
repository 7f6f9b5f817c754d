"""`attention`: packed (varlen) attention, self and cross."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .. import reference
from ..kernels import attention_backends, sdpa
from ..kernels.triton import launchers as triton
from .dispatch import DIFFERENTIABLE, KERNELS, choose
from .library import define, define_backward
from .validate import Check, readable


class _Attention(torch.autograd.Function):
    """The Triton kernels; the other implementations are differentiable themselves."""

    @staticmethod
    def forward(ctx, query, key, value, query_offsets, key_offsets, max_query, max_key, key_lengths, scale):
        out, lse = torch.ops.diffratio.attention_with_lse(
            query, key, value, query_offsets, key_offsets, max_query, max_key, key_lengths, scale
        )
        ctx.save_for_backward(query, key, value, out, lse, query_offsets, key_offsets, key_lengths)
        ctx.options = max_query, max_key, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        *tensors, query_offsets, key_offsets, key_lengths = ctx.saved_tensors
        max_query, max_key, scale = ctx.options
        grads = torch.ops.diffratio.attention_backward(
            grad_out, *tensors, query_offsets, key_offsets, max_query, max_key, key_lengths, scale,
            implementation="triton",
        )  # fmt: skip
        return *grads, None, None, None, None, None, None


_OTHERS = {
    "sdpa": sdpa.attention,
    "cudnn": attention_backends.cudnn,
    "varlen": attention_backends.varlen,
    "flash_attn": attention_backends.flash_attn,
    "reference": reference.attention,
}
KERNELS["attention"] = {"triton": triton.attention} | _OTHERS
DIFFERENTIABLE["attention"] = {"triton": _Attention.apply} | _OTHERS


def _check(query, key, value, query_offsets, key_offsets, max_query, max_key, key_lengths, scale):
    check = Check("attention")
    check.tensor("query", query, "T H d")
    check.tensor("key", key, "S H d", dtype_of=("query", query))
    check.tensor("value", value, "S H d", dtype_of=("query", query))
    check.tensor("query_offsets", query_offsets, "B+1", dtypes=(torch.int32,))
    check.tensor("key_offsets", key_offsets, "B+1", dtypes=(torch.int32,))
    check.optional("key_lengths", key_lengths, "B", dtypes=(torch.int32,))
    samples = query_offsets.shape[0] - 1
    if samples < 0:
        check.fail("query_offsets must hold B+1 values, got none")
    if key_lengths is not None and key_lengths.shape[0] != samples:
        check.fail(f"key_lengths must hold {samples} values (one per sample), got {key_lengths.shape[0]}")
    if query.shape[2] % 8 or query.shape[2] == 0:
        check.fail(f"query has head_dim {query.shape[2]}, must be a positive multiple of 8")
    if scale is not None:
        check.positive("scale", scale)
    for name, longest, rows in (("max_query", max_query, query.shape[0]), ("max_key", max_key, key.shape[0])):
        if longest < 0 or longest > rows or longest * samples < rows:
            check.fail(f"{name}={longest} cannot be the longest of {samples} samples with {rows} rows in all")
    _check_values(check, "query_offsets", query_offsets, query.shape[0], max_query)
    _check_values(check, "key_offsets", key_offsets, key.shape[0], max_key)
    if key_lengths is not None and readable(key_lengths):
        room = key_offsets.diff()
        if (key_lengths < 0).any() or (key_lengths > room).any():
            check.fail(f"key_lengths={key_lengths.tolist()} must be in 0..{room.tolist()}")


def _check_values(check: Check, name: str, offsets: Tensor, rows: int, longest: int):
    if not readable(offsets):
        return
    values = offsets.tolist()
    steps = [b - a for a, b in zip(values, values[1:], strict=False)]
    if values[0] != 0 or values[-1] != rows or any(not 0 <= step <= longest for step in steps):
        limit = f"max_{name.removesuffix('_offsets')}={longest}"
        check.fail(f"{name}={values} must rise from 0 to {rows} in steps of at most {limit}")


_WIDEST_HEAD = {"attention": 256, "two_bin_attention": 128}


def pick(implementation: str, query: Tensor, op: str = "attention") -> str:
    """The implementation for these queries; "auto" leaves heads too wide for the Triton kernels to torch."""
    if implementation == "auto" and query.shape[2] > _WIDEST_HEAD[op]:
        implementation = "sdpa"
    return choose(op, implementation, query.device, query.dtype)


def _run(table):
    def run(
        query, key, value, query_offsets, key_offsets, max_query, max_key,
        *, key_lengths=None, scale=None, implementation="auto",
    ):  # fmt: skip
        _check(query, key, value, query_offsets, key_offsets, max_query, max_key, key_lengths, scale)
        kernel = table["attention"][pick(implementation, query)]
        out = kernel(query, key, value, query_offsets, key_offsets, max_query, max_key, key_lengths, scale)
        return out.contiguous()

    return run


def _fake(
    query, key, value, query_offsets, key_offsets, max_query, max_key,
    *, key_lengths=None, scale=None, implementation="auto",
):  # fmt: skip
    _check(query, key, value, query_offsets, key_offsets, max_query, max_key, key_lengths, scale)
    return query.new_empty(query.shape)


def _fake_with_lse(query, *args):
    lse = query.new_empty(query.shape[1], query.shape[0], dtype=torch.float32)
    return query.new_empty(query.shape), lse


def _fake_backward(grad_out, query, key, value, *args, implementation):
    return tuple(t.new_empty(t.shape) for t in (query, key, value))


def _autocast(query, key, value, *args, **kwargs):
    dtype = torch.get_autocast_dtype(query.device.type)
    with torch.autocast(query.device.type, enabled=False):
        return torch.ops.diffratio.attention(query.to(dtype), key.to(dtype), value.to(dtype), *args, **kwargs)


define(
    "attention(Tensor query, Tensor key, Tensor value, Tensor query_offsets, Tensor key_offsets, "
    "SymInt max_query, SymInt max_key, *, Tensor? key_lengths=None, float? scale=None, "
    'str implementation="auto") -> Tensor',
    kernel=_run(KERNELS),
    fake=_fake,
    differentiable=_run(DIFFERENTIABLE),
    autocast=_autocast,
)
define(
    "attention_with_lse(Tensor query, Tensor key, Tensor value, Tensor query_offsets, Tensor key_offsets, "
    "SymInt max_query, SymInt max_key, Tensor? key_lengths, float? scale) -> (Tensor, Tensor)",
    kernel=partial(triton.attention, save_lse=True),
    fake=_fake_with_lse,
)
define_backward(
    "attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, "
    "Tensor query_offsets, Tensor key_offsets, SymInt max_query, SymInt max_key, Tensor? key_lengths, "
    "float? scale, *, str implementation) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    max_query: int,
    max_key: int,
    *,
    key_lengths: Tensor | None = None,
    scale: float | None = None,
    implementation: str = "auto",
) -> Tensor:
    """softmax(q k^T * scale) v within each sample of a packed batch.

    Args:
        query: [T, H, d], d a multiple of 8.
        key, value: [S, H, d] in the dtype of query.
        query_offsets, key_offsets: int32 [B+1]; sample b owns rows offsets[b]:offsets[b+1].
        max_query, max_key: rows of the longest sample, known to the host.
        key_lengths: int32 [B], only the first ones of a sample's keys count (padded text); 0 gives zeros.
        scale: of the products; None is 1/sqrt(d).
        implementation: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        [T, H, d] in the dtype of query.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or an implementation that cannot run here.
    """
    return torch.ops.diffratio.attention(
        query,
        key,
        value,
        query_offsets,
        key_offsets,
        max_query,
        max_key,
        key_lengths=key_lengths,
        scale=scale,
        implementation=implementation,
    )
