"""Activations that the backward computes again because that is cheaper than keeping them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def recompute_in_backward(
    fn: Callable[[Tensor], Tensor], value: Tensor, recompute: Callable[[], Tensor]
) -> Tensor:
    """fn(value), where the backward of `fn` gets `recompute()` instead of a kept `value`.

    recompute() gives the bits of `value` from tensors that are kept in any case. Checkpointing and offloading
    decide themselves what is kept: under their hooks nothing is added, or `recompute` would keep what they
    drop.
    """
    if not torch.is_grad_enabled():
        return fn(value)
    traced = torch.compiler.is_compiling() or type(value) is not Tensor  # it has no address
    hooked = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    if traced or hooked:
        return fn(value)
    # Not `value` itself: a hook that knew it would keep it.
    address, size, dtype = value.data_ptr(), value.numel(), value.dtype

    def pack(t: Tensor) -> Tensor | torch.Size:
        same = t.data_ptr() == address and t.numel() == size and t.is_contiguous()
        return t.shape if same and t.dtype == dtype else t

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            return recompute().view(kept)

    with saved_tensors_hooks(pack, unpack):
        return fn(value)
