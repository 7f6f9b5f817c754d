"""Forward and backward of one block: dense, with two bins packed, and with two bins as two passes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from diffratio_kernels import kept_tokens, mod_block, reference, two_bin_block
from diffratio_kernels.testing.memory import peak_bytes

from ..flops import training_flops
from .block import BlockBenchmark, benchmark_facts
from .case import BlockCase
from .timing import interleaved_medians

WEIGHT_LARGE = 0.4
DENSE, PACKED, PASSES, EAGER = "mod_block, dense", "two_bin_block", "mod_block twice", "reference twice"


class TrainingCase(BlockCase):
    """A block whose inputs, weights and bin weights all want a gradient."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        arguments = super().arguments(self.tokens)
        self.fixed = {
            n: t.detach() if isinstance(t, Tensor) else t for n, t in arguments.items() if n != "keep"
        }
        self.leaves = [t.requires_grad_() for t in self.fixed.values() if isinstance(t, Tensor)]
        self.weight = torch.full((len(self.x),), WEIGHT_LARGE, device=self.x.device, requires_grad=True)
        self.grad_out = torch.randn_like(self.x)

    def step(self, forward: Callable[[], Tensor]) -> list[Tensor | None]:
        """All gradients of one forward."""
        return torch.autograd.grad(forward(), [*self.leaves, self.weight], self.grad_out, allow_unused=True)

    def dense(self) -> list[Tensor | None]:
        return self.step(lambda: mod_block(keep=self.tokens, **self.fixed))

    def packed(self, small: int, large: int) -> list[Tensor | None]:
        return self.step(lambda: self._two_bins(two_bin_block, small, large))

    def eager(self, small: int, large: int) -> list[Tensor | None]:
        samples = len(self.x)
        return self.step(
            lambda: self._two_bins(reference.two_bin_block, samples * [small], samples * [large])
        )

    def _two_bins(self, function, small, large) -> Tensor:
        return function(keep_small=small, keep_large=large, weight_large=self.weight, **self.fixed)

    def passes(self, small: int, large: int) -> list[Tensor | None]:
        def forward():
            weight = self.weight[:, None, None].to(self.x.dtype)
            small_out, large_out = (mod_block(keep=keep, **self.fixed) for keep in (small, large))
            return small_out + weight * (large_out - small_out)

        return self.step(forward)


def run_training_benchmark(
    batch: int = 1,
    tokens: int = 1024,
    width: int = 1152,
    heads: int = 16,
    text: int = 120,
    bins: tuple[tuple[int, int], ...] = ((4, 5), (5, 6), (6, 7), (8, 9)),
    rounds: int = 7,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    progress: bool = True,
) -> BlockBenchmark:
    """Seconds, FLOPs and peak memory of forward and backward; bins are pairs of kept tenths.

    Raises RuntimeError if the packed gradients differ from those of two passes by more than rounding.
    """
    case = TrainingCase(batch, tokens, width, heads, text, dtype, device)
    kept = {pair: tuple(kept_tokens(tenths, tokens) for tenths in pair) for pair in bins}
    _check(case, *kept[bins[0]], dtype)
    calls: dict[tuple[str, float, float], Callable] = {(DENSE, 0.0, 1.0): case.dense}
    flops = {(DENSE, 0.0, 1.0): training_flops(tokens, tokens, 0, width, text)}
    for pair, keep in kept.items():
        for name, run in ((PACKED, case.packed), (PASSES, case.passes), (EAGER, case.eager)):
            key = name, pair[0] / 10, pair[1] / 10
            calls[key] = partial(run, *keep)
            flops[key] = training_flops(tokens, keep[1], keep[0], width, text, packed=name == PACKED)
    seconds = interleaved_medians(calls, rounds, progress)
    result = BlockBenchmark(
        **benchmark_facts(dtype, device, rounds),
        shape={"batch": batch, "tokens": tokens, "width": width, "heads": heads, "text": text},
    )
    for (name, small, large), call in calls.items():
        key = name, small, large
        result.rows.append(
            {
                "name": name,
                "kept_small": small,
                "kept": large,
                "seconds": seconds[key],
                "flops": batch * flops[key],
                "peak_bytes": peak_bytes(call, device),
            }
        )
    return result


def _check(case: TrainingCase, small: int, large: int, dtype: torch.dtype) -> None:
    for packed, passes in zip(case.packed(small, large), case.passes(small, large), strict=True):
        error, size = (packed - passes).float().norm().item(), passes.float().norm().item()
        if not error <= 256 * torch.finfo(dtype).eps * size:  # the weight is one sum of B N D terms
            raise RuntimeError(
                f"two_bin_block: a gradient differs by {error / size:.3g} of its size: no timing"
            )
