"""Forward and backward of one block: dense, with two bins packed, with two bins as two passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffratio.evaluation.flops import TransformerShape, step_cost
from diffratio_kernels import kept_tokens, mod_block, reference, two_bin_block

from ..harness.options import Options
from ..harness.subject import Candidate, Subject
from .case import BlockCase, Cases, dense_name

WEIGHT_LARGE = 0.4
Gradients = list[Tensor | None]


class TrainingCase(BlockCase):
    """A block whose inputs, weights and bin weights all want a gradient."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        arguments = super().arguments(self.tokens)
        self.fixed = {
            n: t.detach() if isinstance(t, Tensor) else t for n, t in arguments.items() if n != "keep"
        }
        self.leaves = [t.requires_grad_() for t in self.fixed.values() if isinstance(t, Tensor)]
        self.block_leaves = [t.requires_grad_() for t in (self.x, *self.block.parameters())]
        self.weight = torch.full((len(self.x),), WEIGHT_LARGE, device=self.x.device, requires_grad=True)
        self.grad_out = torch.randn_like(self.x)

    def gradients(self, out: Tensor) -> Gradients:
        """All gradients of one forward of ours."""
        return torch.autograd.grad(out, [*self.leaves, self.weight], self.grad_out, allow_unused=True)


@torch.enable_grad()
def _dense(case: TrainingCase) -> Gradients:
    return case.gradients(mod_block(keep=case.tokens, **case.fixed))


@dataclass(frozen=True)
class DenseBlock:
    """All gradients of the dense block, called by `function`."""

    function: Callable[..., Tensor]

    @torch.enable_grad()
    def __call__(self, case: TrainingCase) -> tuple[Tensor, ...]:
        out = self.function(case.block, case.x, case.timestep, case.text)
        return torch.autograd.grad(out, case.block_leaves, case.grad_out)


def _block(block: nn.Module, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    return block(x, timestep=timestep, encoder_hidden_states=text)


@dataclass(frozen=True)
class TwoBins:
    """The ways to run a case with two bins, that keep so many tokens of each sample."""

    small: int
    large: int

    @torch.enable_grad()
    def packed(self, case: TrainingCase) -> Gradients:
        own = {"keep_small": self.small, "keep_large": self.large, "weight_large": case.weight}
        return case.gradients(two_bin_block(**own, **case.fixed))

    @torch.enable_grad()
    def eager(self, case: TrainingCase) -> Gradients:
        samples = len(case.x)
        own = {"keep_small": samples * [self.small], "keep_large": samples * [self.large]}
        return case.gradients(reference.two_bin_block(**own, weight_large=case.weight, **case.fixed))

    @torch.enable_grad()
    def passes(self, case: TrainingCase) -> Gradients:
        weight = case.weight[:, None, None].to(case.x.dtype)
        small, large = (mod_block(keep=keep, **case.fixed) for keep in (self.small, self.large))
        return case.gradients(small + weight * (large - small))

    def verify(self, case: TrainingCase) -> None:
        """Assert that the packed gradients are those of two passes."""
        eps = torch.finfo(case.x.dtype).eps
        for packed, passes in zip(self.packed(case), self.passes(case), strict=True):
            error, size = (packed - passes).float().norm().item(), passes.float().norm().item()
            if not error <= 256 * eps * size:  # the weight's is one sum of B N D terms
                raise AssertionError(f"two_bin_block: a gradient differs by {error / size:.3g} of its size")


def subjects(options: Options) -> Iterator[Subject]:
    """Bins of each kept part and one tenth less. The baseline is our dense block; two bins are timed where
    the packed gradients are those of two passes."""
    yield Subject(
        suite="training",
        name="PixArt block",
        dtype=options.dtype,
        shape=options.shape(),
        make=Cases(TrainingCase, options),
        case_bytes=2 * options.weight_bytes() + 4 * options.row_bytes(),
        candidates=tuple(_candidates(options)),
    )


def _candidates(options: Options) -> Iterator[Candidate]:
    flops = _flops(options, options.tokens, 0)
    yield Candidate("mod_block, dense", _dense, flops=flops, ours=True)
    yield Candidate(dense_name(), DenseBlock(_block), flops=flops)
    if options.compile_mode is not None:
        compiled = torch.compile(_block, mode=options.compile_mode, dynamic=False)
        yield Candidate("dense, compiled", DenseBlock(compiled), flops=flops)
    for tenths in (round(10 * part) for part in options.kept):
        if tenths < 2:
            continue
        small, large = (kept_tokens(part, options.tokens) for part in (tenths - 1, tenths))
        bins, twice = TwoBins(small, large), _flops(options, large, small, packed=False)
        own = {"kept": tenths / 10, "about": {"kept_small": (tenths - 1) / 10}}
        once = _flops(options, large, small)
        yield Candidate("two_bin_block", bins.packed, bins.verify, flops=once, ours=True, **own)
        yield Candidate("mod_block twice", bins.passes, flops=twice, ours=True, **own)
        yield Candidate("reference twice", bins.eager, flops=twice, **own)


def _flops(options: Options, large: int, small: int, packed: bool = True) -> int:
    """Of a whole batch."""
    one = training_flops(options.tokens, large, small, options.width, options.text, packed=packed)
    return options.batch * one


def training_flops(
    tokens: int, keep_large: int, keep_small: int, width: int, text_tokens: int, *, packed: bool = True
) -> int:
    """FLOPs of one sample through one block, forward and backward, with the text keys and values given.

    A product costs twice its forward in the backward; attention 2.5 times (its scores are computed again).

    Args:
        tokens, keep_large, keep_small: N and the kept tokens of both bins; keep_small 0 is one bin.
        width, text_tokens: D and M.
        packed: QKV, attention's keys and fc2 once for both bins; else two passes.
    """
    if not packed:
        return sum(training_flops(tokens, k, 0, width, text_tokens) for k in (keep_large, keep_small))
    shape, both = TransformerShape(1, width, 1, tokens, text_tokens), keep_large + keep_small

    def flops(operator: str, kept: int) -> int:
        return step_cost(operator, shape, kept).flops

    large = flops("route", keep_large) + flops("linear qkv", keep_large) + flops("linear fc2", keep_large)
    each = 3 * flops("linear out", both) + flops("linear fc1", both)
    attention = 7 * (flops("attention", keep_large) + flops("cross_attention", both)) // 2
    return 3 * (large + each) + attention + flops("attention", keep_small)
