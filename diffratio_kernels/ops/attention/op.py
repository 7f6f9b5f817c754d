"""`attention`: packed (varlen) attention, self and cross."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..._backends import choose, kernels
from ..._checks import Check, readable
from ..._choice import Attention, attention_choice
from ..._register import Operator, empty_gradients, like_first, register
from ..._triton.tiles import LARGEST_HEAD_DIM
from ...types import Run, Seqlens


def _check(query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, key_lengths, scale):
    check = Check("attention")
    check.grouped_heads(query, key, value, "S")
    check.cumulative("q", cu_seqlens_q, ("query", query.shape[0]), max_seqlen_q)
    check.cumulative("k", cu_seqlens_k, ("key", key.shape[0]), max_seqlen_k)
    check.optional("key_lengths", key_lengths, "B", dtypes=(torch.int32,))
    samples = cu_seqlens_q.shape[0] - 1
    if key_lengths is not None and key_lengths.shape[0] != samples:
        check.fail(f"key_lengths must hold {samples} values (one per sample), got {key_lengths.shape[0]}")
    if key_lengths is not None and readable(key_lengths):
        room = cu_seqlens_k.diff()
        if (key_lengths < 0).any() or (key_lengths > room).any():
            check.fail(f"key_lengths={key_lengths.tolist()} must be in 0..{room.tolist()}")
    if scale is not None:
        check.positive("scale", scale)


def choose_attention(backend: str, query: Tensor, key: Tensor, *flat, gradient: bool = False) -> str:
    """The backend for these arguments, flat as in the schema but for the scale."""
    *_, queries, keys, key_lengths = flat[:6]
    if backend == "auto" and query.device.type == "cuda" and not gradient:
        samples, lengths = flat[1].shape[0] - 1, key_lengths is not None
        padded = lengths or (samples * queries, samples * keys) != (query.shape[0], key.shape[0])
        kind = "ragged" if padded else "self" if queries == keys else "cross"
        heads = query.shape[2], query.dtype, query.device, query.shape[1] != key.shape[1]
        call = Attention(kind, queries, keys, *heads, padded, lengths)
        backend = attention_choice(call).backend
    unfit = "triton" if query.shape[2] > LARGEST_HEAD_DIM else None
    return choose("attention", backend, query.device, query.dtype, unfit)


def _launcher(backend, query, key, value, *flat):
    *seqlens, scale = flat
    return kernels("attention", backend).attention, (query, key, value, Seqlens(*seqlens), scale)


def register_attention(
    name: str, where: str, options: tuple[str, ...], bundle: Callable, fake: Callable, **others: Callable
) -> None:
    """Register an attention, and what its Triton kernels train by: `_with_lse` and `_backward` operators.

    Args:
        name: of the operator, its folder and its launcher.
        where: schema of the arguments that tell where samples lie.
        options: schemas of the arguments that may be None; the last one is the scale.
        bundle: makes what backends take of all these arguments but the scale.
        fake: as for `Operator`.
        others: check, launcher and chosen of the `Operator`.
    """

    def with_lse(query, key, value, *flat):
        *bundled, scale = flat
        forward = getattr(kernels(name, "triton"), name)
        return forward(query, key, value, bundle(*bundled), scale, save_lse=True)

    def backward(grad_out, query, key, value, out, lse, *flat):
        *bundled, scale = flat
        launcher = getattr(kernels(name, "triton"), f"{name}_backward")
        return launcher(grad_out, query, key, value, out, lse, bundle(*bundled), scale)

    def fake_with_lse(query, *flat):
        out = fake(query, *flat)
        return out, query.new_empty(query.shape[1], out.shape[0], dtype=torch.float32)

    def fake_backward(_, query, key, value, *__):
        return empty_gradients(query, key, value)

    def train(_, query, key, value, *flat):
        out, lse = op_with_lse(query, key, value, *flat)
        return out, (query, key, value, out, lse, *flat)

    def gradients(_, kept, grad_out):
        return dict(zip(("query", "key", "value"), op_backward(grad_out, *kept), strict=True))

    operands, given = "Tensor query, Tensor key, Tensor value", f"{where}, {', '.join(options)}"
    op_with_lse = register(
        f"{name}_with_lse({operands}, {given}) -> (Tensor, Tensor)", with_lse, fake_with_lse
    )
    op_backward = register(
        f"{name}_backward(Tensor grad_out, {operands}, Tensor out, Tensor lse, {given}) "
        "-> (Tensor, Tensor, Tensor)",
        backward,
        fake_backward,
    )
    defaults = ", ".join(f"{option}=None" for option in options)
    Operator(
        f'{name}({operands}, {where}, *, {defaults}, str backend="auto") -> Tensor',
        fake=fake,
        gradients=gradients,
        train=train,
        cast=("query", "key", "value"),
        **others,
    )


register_attention(
    "attention",
    "Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k",
    ("Tensor? key_lengths", "float? scale"),
    bundle=Seqlens,
    fake=like_first,
    check=_check,
    launcher=_launcher,
    chosen=choose_attention,
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
        key, value: [S, h, d] in the dtype of query, H a multiple of h: head i of query attends by head
            i // (H // h) of both.
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
    flat = seqlens.cu_seqlens_q, seqlens.cu_seqlens_k, seqlens.max_seqlen_q, seqlens.max_seqlen_k
    if run.direct:
        chosen = choose_attention(backend, query, key, value, *flat, seqlens.key_lengths)
        return kernels("attention", chosen).attention(query, key, value, seqlens, None).flatten(1)
    options = {"key_lengths": seqlens.key_lengths, "backend": backend}
    return torch.ops.diffratio.attention(query, key, value, *flat, **options).flatten(1)
