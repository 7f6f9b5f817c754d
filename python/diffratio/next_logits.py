"""Router logits of a layer that the layer before it made, where it wrote its rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from diffratio_kernels.ops import autocast_is_on, choose


def makes_next_logits(x: Tensor) -> bool:
    """Whether the kernel that writes the rows of a block like x also scores them for the next one."""
    return x.is_cuda and choose("mod_block", "auto", x.device, x.dtype) in ("cuda", "triton")


class NextLogits:
    """Logits on their way from one layer of a model to the next, by the very tensor that they are of.

    They are gone when that tensor is, and count only as long as neither it nor the router has changed.
    """

    def __init__(self):
        self._of = WeakIdKeyDictionary()

    def __reduce__(self):
        """A copy, pickled or not, has other tensors to come."""
        return NextLogits, ()

    def __len__(self) -> int:
        return len(self._of)

    def put(self, x: Tensor, router: nn.Module, logits: Tensor) -> None:
        """logits [B, N]: what `router` gives for x [B, N, D]."""
        self._of[x] = x._version, _state(router), logits

    def take(self, x: Tensor, router: nn.Module) -> Tensor | None:
        """The logits of `router` for x, once; None where there are none that count."""
        version, state, logits = self._of.pop(x, (None, None, None))
        counts = logits is not None and version == x._version and _same(state, _state(router))
        return logits if counts else None


def _state(router: nn.Module) -> list[tuple[Tensor | None, int]]:
    return [(t, 0 if t is None else t._version) for t in (router.router_weight, router.router_bias)]


def _same(state: list, other: list) -> bool:
    return all(a is b and version == now for (a, version), (b, now) in zip(state, other, strict=True))


def handed_over(x: Tensor) -> bool:
    """Whether logits go from layer to layer in this call: not under autocast, which may widen x, nor in
    inference mode, whose tensors do not tell when they change."""
    return not (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or torch.is_inference_mode_enabled()
        or x.is_inference()
        or autocast_is_on(x.device)
    )
