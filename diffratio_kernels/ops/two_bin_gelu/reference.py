"""`two_bin_gelu` in eager PyTorch, and the weights of the rows of two bins (paper section 3.3).

On a packed row, w = weight_large of its sample, its small weight is 1 - w if it is in the small set and 0 if
not, and omega is the sum of the two."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...types import Bins, Nested, Places
from ..route.reference import accumulation_dtype


def small_rows(bins: Bins | Nested) -> Tensor:
    """[S] packed row of each small row: sample b's begin where its large rows do."""
    large, small = bins.cu_seqlens_large.long(), bins.cu_seqlens_small.long()
    at = torch.arange(bins.small, device=large.device)
    sample = torch.bucketize(at, small[1:], right=True)
    return at - small[sample] + large[sample]


def places_of(bins: Bins) -> Places:
    """Those of bins, made where they are not there yet."""
    if bins.places is None:
        small = small_rows(bins)
        at = torch.arange(bins.rows, device=small.device)
        sample = torch.bucketize(at, bins.cu_seqlens_large[1:].long(), right=True)
        bins.places = Places(small, sample, torch.ones_like(at, dtype=torch.bool).index_fill(0, small, False))
    return bins.places


def blend(both: Tensor, bins: Bins) -> Tensor:
    """Rows [T + S, .] of both bins -> [T, .]: w * large (+ (1 - w) * small on small rows)."""
    small = places_of(bins).small
    weight = _row_weights(bins, both.dtype)
    return (weight * both[: bins.rows]).index_add(0, small, (1 - weight[small]) * both[bins.rows :])


def _row_weights(bins: Bins, dtype: torch.dtype) -> Tensor:
    return bins.weight_large.to(dtype)[places_of(bins).sample, None]


def branch_weight(bins: Bins) -> Tensor:
    """omega [T, 1]: 1 where both bins hold a row, w where only the large one does."""
    small = places_of(bins).small
    weight = _row_weights(bins, accumulation_dtype(bins.weight_large.dtype))
    return weight.index_add(0, small, 1 - weight[small])


def two_bin_gelu(pre: Tensor, bins: Bins) -> Tensor:
    """pre [T + S, F] of both bins -> the blend [T, F] of their GELUs (tanh): fc2 runs once on it.

    w (g_l W) + (1 - w) (g_s W) = (w g_l + (1 - w) g_s) W.
    """
    inner = F.gelu(pre.to(accumulation_dtype(pre.dtype)), approximate="tanh")
    return blend(inner, bins).to(pre.dtype)
