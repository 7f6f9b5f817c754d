"""`qk_norm_rope`: query and key normed and turned by the place of their token, beside the value."""

import torch
from torch import Tensor

from ..._backends import choose, kernels
from ..._checks import Check, readable
from ..._register import Operator, register
from ...types import HeadNorm, Heads, PackedRows, Rope, Run

NORMS = ("none", "rms", "layer")


def _check(
    query, key, value, index, tokens, heads, kv_heads, norm, across_heads, eps,
    query_weight, key_weight, query_bias, key_bias, cos, sin, halves,
):  # fmt: skip
    check = Check("qk_norm_rope")
    check.tensor("query", query, "T E")
    check.tensor("key", key, "T C", dtype_of=("query", query))
    check.tensor("value", value, "T C", dtype_of=("query", query))
    for name, count, columns in (("heads", heads, query.shape[1]), ("kv_heads", kv_heads, key.shape[1])):
        if count < 1 or columns % count:
            check.fail(f"{name}={count} must divide the {columns} columns")
    width = query.shape[1] // heads
    if key.shape[1] // kv_heads != width or width % 2:
        check.fail(f"heads={heads} and kv_heads={kv_heads} must give heads of one even width")
    check.choice("norm", norm, NORMS)
    if tokens < 1:
        check.fail(f"tokens={tokens} must be positive")
    samples = 1 if cos is None else cos.shape[0]
    check.tensor("index", index, "T", dtypes=(torch.int64,))
    if readable(index) and index.numel() > 0:
        low, high = index.aminmax()
        if low < 0 or (samples > 1 and high >= samples * tokens):
            check.fail(f"index holds {low.item()} to {high.item()}, must be rows of the flattened [B*N]")
    per_head = ("d", "d") if not across_heads else ("E", "C")
    for suffix, of_query, of_key in (("weight", query_weight, key_weight), ("bias", query_bias, key_bias)):
        if norm == "none" and (of_query is not None or of_key is not None):
            check.fail(f"query_{suffix} and key_{suffix} need a norm")
        check.optional(f"query_{suffix}", of_query, per_head[0])
        check.optional(f"key_{suffix}", of_key, per_head[1])
    if norm != "none":
        check.positive("eps", eps)
    if (cos is None) != (sin is None):
        check.fail("cos and sin must be given together")
    if cos is not None:
        check.tensor("cos", cos, "S N G P")
        check.tensor("sin", sin, "S N G P")
        _, rows, groups, pairs = cos.shape
        if rows != tokens or groups not in (1, heads) or (groups > 1 and heads != kv_heads):
            check.fail(
                f"cos and sin must be [1 or B, N={tokens}, 1 or H={heads}, pairs], got {tuple(cos.shape)}"
            )
        if 2 * pairs > width:
            check.fail(f"cos and sin have {pairs} pairs, a head of {width} channels has {width // 2}")


def _bundles(
    query, key, value, index, tokens, heads, kv_heads, norm, across_heads, eps,
    query_weight, key_weight, query_bias, key_bias, cos, sin, halves,
):  # fmt: skip
    of_norm = None
    if norm != "none":
        of_norm = HeadNorm(norm, query_weight, key_weight, query_bias, key_bias, eps, across_heads)
    rope = None if cos is None else Rope(cos.detach(), sin.detach(), halves)  # they have no gradients
    return Heads(query, key, value, heads, kv_heads), PackedRows(index, tokens), of_norm, rope


def _backend(asked: str, given: Heads, norm: HeadNorm | None, rope: Rope | None) -> str:
    """The one asked for; "auto" leaves heads that the CUDA C++ kernels cannot hold to others (heads.cuh)."""
    split = 0 if rope is None or not rope.halves else rope.cos.shape[3]
    items = -(-split // 4) - (2 * split - given.width) // 8
    heads = 1 if norm is None or not norm.across_heads else max(given.heads, given.kv_heads)
    lanes = 1 << (items - 1).bit_length()
    fits = lanes <= 32 and heads * lanes <= 1024
    if asked == "cuda" and not fits:
        raise ValueError(
            f"qk_norm_rope: backend='cuda' holds no head of {given.width} channels"
            + f" and no row of {heads} of them, normed together" * (heads > 1)
        )
    return choose("qk_norm_rope", asked, given.query.device, given.query.dtype, None if fits else "cuda")


def _chosen(asked, *arguments, gradient):
    given, _, norm, rope = _bundles(*arguments)
    return _backend(asked, given, norm, rope)


def _launcher(backend, *arguments):
    return kernels("qk_norm_rope", backend).qk_norm_rope, _bundles(*arguments)


_NAMES = ("query", "key", "query_weight", "key_weight", "query_bias", "key_bias")


def _gradients(backend, kept, grad):
    query, key, value, *_ = kept
    heads, kv_heads = kept[5:7]
    found = torch.ops.diffratio.qk_norm_rope_backward(grad, *kept, backend=backend)
    given = query, key, *kept[10:14]
    known = {name: g for name, t, g in zip(_NAMES, given, found, strict=True) if t is not None}
    return known | {"value": grad[:, heads + kv_heads :].reshape(value.shape)}


def _backward(grad, *arguments, backend):
    given, rows, norm, rope = _bundles(*arguments)
    found = kernels("qk_norm_rope", backend).qk_norm_rope_backward(grad, given, rows, norm, rope)
    return tuple(grad.new_empty(0) if t is None else t for t in found)


def _fake(query, _key, _value, _index, _tokens, heads, kv_heads, *_):
    return query.new_empty(query.shape[0], heads + 2 * kv_heads, query.shape[1] // heads)


def _fake_backward(grad, query, key, *arguments, backend):
    wide = torch.promote_types(query.dtype, torch.float32)
    weights = arguments[8:12]
    sums = (grad.new_empty(0 if t is None else t.shape, dtype=wide) for t in weights)
    return query.new_empty(query.shape), key.new_empty(key.shape), *sums


Operator(
    "qk_norm_rope(Tensor query, Tensor key, Tensor value, Tensor index, SymInt tokens, SymInt heads, "
    'SymInt kv_heads, *, str norm="none", bool across_heads=False, float eps=1e-6, '
    "Tensor? query_weight=None, Tensor? key_weight=None, Tensor? query_bias=None, Tensor? key_bias=None, "
    'Tensor? cos=None, Tensor? sin=None, bool halves=False, str backend="auto") -> Tensor',
    check=_check,
    launcher=_launcher,
    fake=_fake,
    gradients=_gradients,
    chosen=_chosen,
)
register(
    "qk_norm_rope_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor index, SymInt tokens, "
    "SymInt heads, SymInt kv_heads, str norm, bool across_heads, float eps, Tensor? query_weight, "
    "Tensor? key_weight, Tensor? query_bias, Tensor? key_bias, Tensor? cos, Tensor? sin, bool halves, *, "
    "str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    kernel=_backward,
    fake=_fake_backward,
)


def qk_norm_rope(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    index: Tensor,
    tokens: int,
    heads: int,
    kv_heads: int,
    *,
    norm: str = "none",
    across_heads: bool = False,
    eps: float = 1e-6,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    query_bias: Tensor | None = None,
    key_bias: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    halves: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Query and key normed and turned by the place of each row's token, and the value, side by side.

    Args:
        query: [T, H d], as its product leaves it; rows may have any stride.
        key, value: [T, h d], of the dtype of query.
        index: int64 [T], rows of the flattened [B*N]; row t stands at place index[t] % tokens.
        tokens: N.
        heads, kv_heads: H and h.
        norm: of query and key: "rms", "layer" or "none".
        across_heads: whether all channels of a row are normed together, and not each head.
        eps: of the norm.
        query_weight, key_weight: [d], across heads [H d] and [h d], any float dtype; None: 1.
        query_bias, key_bias: the same; None: 0.
        cos, sin: angles [1 or B, N, 1 or H, pairs], not differentiable; with fewer pairs than d / 2 the last
            channels stay as they are. None: no rotation.
        halves: whether channel i turns with i + pairs, and not 2i with 2i + 1.
        backend: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        [T, H + 2h, d] in the dtype of query: heads of query, key and value, as `attention` takes them.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or a backend that cannot run here.

    Example:
        >>> q, k, v = torch.randn(3, 8, H * 16)
        >>> qk_norm_rope(q, k, v, torch.arange(8), 8, H, H, norm="rms").shape[1] == 3 * H
        True
    """
    return torch.ops.diffratio.qk_norm_rope(
        query, key, value, index, tokens, heads, kv_heads, norm=norm, across_heads=across_heads, eps=eps,
        query_weight=query_weight, key_weight=key_weight, query_bias=query_bias, key_bias=key_bias,
        cos=cos, sin=sin, halves=halves, backend=backend,
    )  # fmt: skip


def run_qk_norm_rope(
    run: Run,
    given: Heads,
    rows: PackedRows,
    norm: HeadNorm | None,
    rope: Rope | None,
    out: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """`qk_norm_rope` as blocks run it. Without a gradient row t of sample s is written to row t + shift[s] of
    `out` [R, H + 2h, d]."""
    if run.direct:
        module = kernels("qk_norm_rope", _backend(run.others, given, norm, rope))
        return module.qk_norm_rope(given, rows, norm, rope, out, shift)
    options = {"backend": run.others}
    if norm is not None:
        options |= {
            "norm": norm.kind, "across_heads": norm.across_heads, "eps": norm.eps,
            "query_weight": norm.query_weight, "key_weight": norm.key_weight,
            "query_bias": norm.query_bias, "key_bias": norm.key_bias,
        }  # fmt: skip
    if rope is not None:
        options |= {"cos": rope.cos, "sin": rope.sin, "halves": rope.halves}
    parts = given.query, given.key, given.value, rows.index, rows.tokens, given.heads, given.kv_heads
    return torch.ops.diffratio.qk_norm_rope(*parts, **options)
