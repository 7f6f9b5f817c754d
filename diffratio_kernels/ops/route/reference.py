"""Router logits, and the exact order by which tokens are kept (paper section 3.2)."""

import math

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp32 for everything up to fp32, fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)


def router_logits(x: Tensor, router_weight: Tensor, router_bias: Tensor | None = None) -> Tensor:
    """x [B, N, D] . router_weight [D] (+ router_bias [1]) -> logits [B, N], in at least fp32."""
    dtype = accumulation_dtype(x.dtype)
    with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):  # it would make this bf16
        logits = x.to(dtype) @ router_weight.to(dtype)
    return logits if router_bias is None else logits + router_bias.to(dtype)


def select_tokens(
    logits: Tensor, keep: list[int], keep_small: list[int] | None = None
) -> tuple[Tensor, Tensor]:
    """The `keep[b]` tokens of sample b with the largest logit.

    Larger first, -0 equals +0, NaN below -inf, ties to the lowest token index. Rows come out in
    ascending token order; with `keep_small` (a smaller bin) that bin's rows come first, ascending,
    then the rows that only the larger bin has, ascending, so that both bins are prefixes.

    logits [B, N]; returns index [T] int64 (rows of the flattened [B*N]) and offsets [B+1] int32.
    """
    batch, tokens = logits.shape
    nan = logits.isnan()
    by_logit = logits.masked_fill(nan, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    nan_last = nan.gather(1, by_logit).to(torch.uint8).sort(dim=1, stable=True).indices
    order = by_logit.gather(1, nan_last)

    rows = []
    for b, k in enumerate(keep):
        small = 0 if keep_small is None else keep_small[b]
        rows.append(order[b, :small].sort().values + b * tokens)
        rows.append(order[b, small:k].sort().values + b * tokens)
    index = torch.cat(rows) if rows else order.new_empty(0)
    return index, cu_seqlens_of(keep, logits.device)


def ranked(logits: Tensor, pinned: Tensor | None) -> Tensor:
    """What tokens are selected by: pinned [B, N] ones rank above all others, +inf among them."""
    if pinned is None:
        return logits
    logits = logits.detach().clamp(max=torch.finfo(logits.dtype).max)
    return logits.masked_fill(pinned, torch.inf)


def neutral_logit(score_scale: float) -> float:
    """The logit for which score_scale * sigmoid(logit) is 1."""
    return math.inf if score_scale == 1 else -math.log(score_scale - 1)


def equal_cu_seqlens(samples: int, length: int, device: torch.device) -> Tensor:
    """`cu_seqlens_of` samples of one length: no number of them is a constant of a compiled graph."""
    return torch.arange(samples + 1, dtype=torch.int32, device=device) * length


def cu_seqlens_of(lengths: list[int], device: torch.device) -> Tensor:
    """[0, l_0, l_0 + l_1, ...] as int32: the cumulative lengths of varlen attention."""
    # Equal ones are made on the device by one kernel: no copy, no sync.
    if not any(lengths):
        return torch.zeros(len(lengths) + 1, dtype=torch.int32, device=device)
    if all(length == lengths[0] for length in lengths):
        return torch.arange(0, len(lengths) * lengths[0] + 1, lengths[0], dtype=torch.int32, device=device)
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)


def constants_may_be_kept(like: Tensor) -> bool:
    """Whether what is made on the device of `like`, to be read only, may serve other calls: not what is
    traced, and no memory of a CUDA graph."""
    traced = type(like) is not Tensor or torch._C._len_torch_dispatch_stack() > 0
    return not traced and not (like.is_cuda and torch.cuda.is_current_stream_capturing())


_constant: dict[tuple, Tensor] = {}
"""At most 256, and for ever: CUDA graphs may read them."""


def constant_cu_seqlens(samples: int, length: int, like: Tensor) -> Tensor:
    """[0, length, 2 length, ...] as int32 on the device of `like`, made once: to be read only, by no compiled
    graph."""
    device = like.device
    key = samples, length, device
    if key in _constant:
        return _constant[key]
    if len(_constant) >= 256 or not constants_may_be_kept(like):
        return cu_seqlens_of([length] * samples, device)
    with torch.inference_mode(False):
        made = torch.arange(samples + 1, dtype=torch.int32) * length
        _constant[key] = made.to(device)  # and wait for it: other streams read it too
    return _constant[key]


def select(
    logits: Tensor, counts: list[int], counts_small: list[int] | None = None
) -> tuple[Tensor, Tensor, None]:
    """`select_tokens`, as the kernels give it: they may make the row map as well."""
    return *select_tokens(logits.detach(), counts, counts_small), None
