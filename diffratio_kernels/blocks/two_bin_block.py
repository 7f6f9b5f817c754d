"""`two_bin_block`: two bins of one routed block as one computation, by raw weights (paper section 3.3)."""

from torch import Tensor

from .._checks import Check, counts, readable
from .._register import Shortcut, register
from ..ops.route.op import run_route
from .mod_block import BACKENDS_AND_RESULT, PARTS, RawBlock, bundled, raw_block
from .products import run_of
from .two_bin import bins_of, two_bin

_ONE_BIN = {"small": 1, "large": 0}
"""The bin that gets no backward -> what weight_large must be in every sample."""
_FORWARD_ONLY = ("auto", "none", *_ONE_BIN)


def _raw_block(
    x, router_weight, keep_small, keep_large, weight_large, *args, forward_only="auto", **kwargs
) -> tuple[RawBlock, list[int], Tensor, str]:
    """The block with the large bin's counts, the small bin's, weights, and which bin gets no backward."""
    block = raw_block("two_bin_block", x, router_weight, keep_large, *args, keep_name="keep_large", **kwargs)
    check = Check("two_bin_block")
    check.tensor("x", x, "B N D")
    check.tensor("weight_large", weight_large, "B")
    check.choice("forward_only", forward_only, _FORWARD_ONLY)
    if forward_only in _ONE_BIN and readable(weight_large) and (weight_large != _ONE_BIN[forward_only]).any():
        check.fail(f"forward_only={forward_only!r} needs a weight_large of {_ONE_BIN[forward_only]} only")
    return block, check.keep_small(keep_small, block.keep, "keep_large"), weight_large, forward_only


def _without_weight(weight_large: Tensor) -> str:
    """The bin that has no weight in any sample; "none" where there is none, or where seeing it would be a
    sync."""
    if not readable(weight_large):
        return "none"
    return next((bin for bin, weight in _ONE_BIN.items() if bool((weight_large == weight).all())), "none")


def _compute(
    block: RawBlock, keep_small: list[int], weight_large: Tensor, forward_only: str, direct: bool
) -> Tensor:
    x = block.call.image.tokens
    if len(block.keep) < x.shape[0]:  # traced: both bins are computed as twice as many samples
        block.keep, keep_small = block.keep * x.shape[0], keep_small * x.shape[0]
    if forward_only == "auto" and not direct:
        forward_only = _without_weight(weight_large)
    run = run_of("two_bin_block", block.backend, block.attention, x, direct)
    rows, logits = run_route(run, x, block.router, block.keep, block.index, keep_small)
    bins = bins_of(weight_large, keep_small, block.keep, x)
    return two_bin(block.call, rows, bins, (logits, block.rescale), run, forward_only)


def _kernel(*args, **kwargs):
    return _compute(*_raw_block(*args, **kwargs), direct=True)


def _unchecked(x, router_weight, keep_small, keep_large, weight_large, *args, forward_only="auto", **kwargs):
    block = bundled(x, router_weight, keep_large, *args, **kwargs)
    return _compute(block, counts(keep_small, x.shape[0]), weight_large, forward_only, direct=True)


def _differentiable(*args, **kwargs):
    return _compute(*_raw_block(*args, **kwargs), direct=False)


def _fake(x, *args, **kwargs):
    _raw_block(x, *args, **kwargs)
    return x.new_empty(x.shape)


_two_bin_block = register(
    "two_bin_block(Tensor x, Tensor router_weight, SymInt[] keep_small, SymInt[] keep_large, "
    f'Tensor weight_large, {PARTS}, str forward_only="auto", {BACKENDS_AND_RESULT}',
    kernel=_kernel,
    fake=_fake,
    differentiable=_differentiable,
    autocast=_differentiable,
)
_two_bin_block = Shortcut(_two_bin_block, _unchecked)


def two_bin_block(
    x: Tensor,
    router_weight: Tensor,
    keep_small: int | list[int],
    keep_large: int | list[int],
    weight_large: Tensor,
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
    forward_only: str = "auto",
    backend: str = "auto",
    attention: str = "auto",
) -> Tensor:
    """weight_large F(x, keep_large) + (1 - weight_large) F(x, keep_small), packed (paper section 3.3).

    F is `mod_block`, whose help says which score_scale belongs to which start of a router.

    Args:
        x, router_weight, modulation, num_heads: as in `mod_block`.
        keep_small, keep_large: kept tokens of the two bins, one int or B ints each, keep_small <= keep_large.
            `torch.ops` takes lists only.
        weight_large: [B], any real numbers, differentiable.
        qkv_weight, qkv_bias, out_weight, out_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias: as in
            `mod_block`.
        router_bias, rescale, score_scale, eps, mlp_eps, backend, attention: likewise.
        context_kv, context_lengths, cross_q_weight, cross_q_bias, cross_out_weight, cross_out_bias: likewise.
        index: int64 [T], a selection of both bins made before, each sample's small set first.
        forward_only: "small" or "large" where that bin has weight 0 in every sample and gets no backward,
            "none" for neither; "auto" looks at the weights where that needs no wait, on the CPU. Every
            gradient is the same.

    Returns:
        [B, N, D] in the dtype of x.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or a backend that cannot run here.

    Example:
        >>> weight = torch.tensor([0.3, 0.3], requires_grad=True)  # of 180 tokens; 154 weigh 0.7
        >>> y = two_bin_block(x, router, 154, 180, weight, modulation, qkv, None, out, None,
        ...                   fc1, None, fc2, None, H, score_scale=2.0)
        >>> y.sum().backward()
    """
    return _two_bin_block(
        x, router_weight, counts(keep_small), counts(keep_large), weight_large, modulation,
        qkv_weight, qkv_bias, out_weight, out_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias,
        num_heads, router_bias=router_bias, context_kv=context_kv, context_lengths=context_lengths,
        cross_q_weight=cross_q_weight, cross_q_bias=cross_q_bias, cross_out_weight=cross_out_weight,
        cross_out_bias=cross_out_bias, rescale=rescale, score_scale=score_scale, eps=eps, mlp_eps=mlp_eps,
        index=index, forward_only=forward_only, backend=backend, attention=attention,
    )  # fmt: skip
