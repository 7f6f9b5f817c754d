"""Forward and backward of one block: dense, with two bins packed, with two bins as two passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from diffratio_kernels import kept_tokens, mod_block, reference, two_bin_block

from ...flops import training_flops
from ..case import BlockCase, dense_name
from ..options import Options
from ..subject import Candidate, Subject

WEIGHT_LARGE = 0.4


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

    @torch.enable_grad()
    def step(self, forward: Callable[[], Tensor]) -> list[Tensor | None]:
        """All gradients of one forward."""
        return torch.autograd.grad(forward(), [*self.leaves, self.weight], self.grad_out, allow_unused=True)

    @torch.enable_grad()
    def block_step(self, function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        """All gradients of the dense block, called by `function`."""
        out = function(self.block, self.x, self.timestep, self.text)
        return torch.autograd.grad(out, self.block_leaves, self.grad_out)

    def dense(self) -> list[Tensor | None]:
        return self.step(lambda: mod_block(keep=self.tokens, **self.fixed))

    def packed(self, small: int, large: int) -> list[Tensor | None]:
        return self.step(lambda: self._two_bins(two_bin_block, small, large))

    def eager(self, small: int, large: int) -> list[Tensor | None]:
        samples = len(self.x)
        return self.step(
            lambda: self._two_bins(reference.two_bin_block, samples * [small], samples * [large])
        )

    def passes(self, small: int, large: int) -> list[Tensor | None]:
        def forward():
            weight = self.weight[:, None, None].to(self.x.dtype)
            small_out, large_out = (mod_block(keep=keep, **self.fixed) for keep in (small, large))
            return small_out + weight * (large_out - small_out)

        return self.step(forward)

    def _two_bins(self, function, small, large) -> Tensor:
        return function(keep_small=small, keep_large=large, weight_large=self.weight, **self.fixed)


def subjects(options: Options) -> Iterator[Subject]:
    """Bins of each kept part and one tenth less. The baseline is our dense block; two bins are timed where
    the packed gradients are those of two passes."""
    yield Subject(
        level="training",
        name="PixArt block",
        dtype=options.dtype,
        shape=options.shape(),
        make=partial(TrainingCase, options),
        case_bytes=2 * options.weight_bytes() + 4 * options.row_bytes(),
        candidates=tuple(_candidates(options)),
    )


def _candidates(options: Options) -> Iterator[Candidate]:
    tokens, batch = options.tokens, options.batch
    flops = partial(training_flops, tokens, width=options.width, text_tokens=options.text)
    dense = partial(Candidate, flops=batch * flops(tokens, 0))
    yield dense("mod_block, dense", TrainingCase.dense, ours=True)
    yield dense(dense_name(), partial(TrainingCase.block_step, function=_dense))
    if options.compile_mode is not None:
        compiled = torch.compile(_dense, mode=options.compile_mode, dynamic=False)
        yield dense("dense, compiled", partial(TrainingCase.block_step, function=compiled))
    for tenths in (round(10 * part) for part in options.kept):
        if tenths < 2:
            continue
        small, large = (kept_tokens(part, tokens) for part in (tenths - 1, tenths))
        for name, run, packed in (
            ("two_bin_block", TrainingCase.packed, True),
            ("mod_block twice", TrainingCase.passes, False),
            ("reference twice", TrainingCase.eager, False),
        ):
            yield Candidate(
                name,
                partial(run, small=small, large=large),
                partial(_check, small=small, large=large) if packed else None,
                kept=tenths / 10,
                flops=batch * flops(large, small, packed=packed),
                ours=name != "reference twice",
                about={"kept_small": (tenths - 1) / 10},
            )


def _dense(block: nn.Module, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    return block(x, timestep=timestep, encoder_hidden_states=text)


def _check(case: TrainingCase, small: int, large: int) -> None:
    eps = torch.finfo(case.x.dtype).eps
    for packed, passes in zip(case.packed(small, large), case.passes(small, large), strict=True):
        error, size = (packed - passes).float().norm().item(), passes.float().norm().item()
        if not error <= 256 * eps * size:  # the weight's is one sum of B N D terms
            raise AssertionError(f"two_bin_block: a gradient differs by {error / size:.3g} of its size")
