"""`attention`: packed (varlen) attention, self and cross."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..kernels import sdpa
from .dispatch import choose
from .library import define
from .validate import Check, readable

KERNELS = {"sdpa": sdpa.attention, "reference": reference.attention}


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


def _run(
    query, key, value, query_offsets, key_offsets, max_query, max_key,
    *, key_lengths=None, scale=None, implementation="auto",
):  # fmt: skip
    _check(query, key, value, query_offsets, key_offsets, max_query, max_key, key_lengths, scale)
    kernel = KERNELS[choose("attention", implementation, query.device)]
    out = kernel(query, key, value, query_offsets, key_offsets, max_query, max_key, key_lengths, scale)
    return out.contiguous()


def _fake(
    query, key, value, query_offsets, key_offsets, max_query, max_key,
    *, key_lengths=None, scale=None, implementation="auto",
):  # fmt: skip
    _check(query, key, value, query_offsets, key_offsets, max_query, max_key, key_lengths, scale)
    return query.new_empty(query.shape)


def _autocast(query, key, value, *args, **kwargs):
    dtype = torch.get_autocast_dtype(query.device.type)
    with torch.autocast(query.device.type, enabled=False):
        return torch.ops.diffratio.attention(query.to(dtype), key.to(dtype), value.to(dtype), *args, **kwargs)


define(
    "attention(Tensor query, Tensor key, Tensor value, Tensor query_offsets, Tensor key_offsets, "
    "SymInt max_query, SymInt max_key, *, Tensor? key_lengths=None, float? scale=None, "
    'str implementation="auto") -> Tensor',
    kernel=_run,
    fake=_fake,
    differentiable=_run,
    autocast=_autocast,
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

    query [T, H, d]; key, value [S, H, d], same dtype; d a multiple of 8. query_offsets, key_offsets [B+1]
    int32: sample b owns rows offsets[b]:offsets[b+1]; max_query, max_key: longest sample, known to the host.
    key_lengths [B] int32: only the first ones of a sample's keys count (padded text); 0 gives zeros.
    scale defaults to 1/sqrt(d). Returns [T, H, d].
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
