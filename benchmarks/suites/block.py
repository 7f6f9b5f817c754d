"""One PixArt block: dense, compiled, with merged tokens, by the authors' eager code, and by `mod_block`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffratio.baselines.named import parse_baseline
from diffratio.evaluation.flops import block_flops
from diffratio.evaluation.flops.baselines import block_kept
from diffratio_kernels import kept_tokens, mod_block, reference, route
from diffratio_kernels.blocks.joint import every_row
from diffratio_kernels.blocks.mod_block import raw_block
from diffratio_kernels.blocks.products import run_of
from diffratio_kernels.blocks.routed import routed
from diffratio_kernels.testing.budget import check_budget
from diffratio_kernels.testing.cases import cast
from diffratio_kernels.types import Rescale

from ..harness.options import Options
from ..harness.subject import Candidate, Subject
from ..peers.authors import authors_block
from .case import BlockCase, Cases, dense_name

COMPILED = 0.5
"""Where the authors' code is compiled: every kept count compiles anew, for longer than all is timed."""


def subjects(options: Options) -> Iterator[Subject]:
    """FLOPs are true ones of a whole batch; `mod_block` is handed the projected text, which sampling projects
    once, the others project it."""
    yield Subject(
        suite="block",
        name="PixArt block",
        dtype=options.dtype,
        shape=options.shape(),
        make=Cases(BlockCase, options),
        case_bytes=options.weight_bytes() + 2 * options.row_bytes(),
        candidates=(*_dense_candidates(options), *_routed_candidates(options)),
    )


def _flops(options: Options, keep: int | None, method: str | None = None, cache_text_kv: bool = False) -> int:
    own = {"method": method, "cache_text_kv": cache_text_kv}
    return options.batch * block_flops(options.transformer, keep, **own).total()


def _dense_candidates(options: Options) -> Iterator[Candidate]:
    flops = _flops(options, None)
    yield Candidate(dense_name(), BlockCase.dense, flops=flops)
    if options.compile_mode is not None:
        yield Candidate("dense, compiled", Compiled(_dense, options.compile_mode), flops=flops)
        for name, function in DENSE_BY.items() if options.device == "cuda" else ():
            yield Candidate(f"dense, compiled, {name}", Compiled(function, options.compile_mode), flops=flops)


def _routed_candidates(options: Options) -> Iterator[Candidate]:
    for ratio in options.kept:
        keep = kept_tokens(round(10 * ratio), options.tokens)
        way, flops = Routed(keep), _flops(options, keep)
        yield Candidate("authors' eager", way.authors, kept=ratio, flops=flops)
        if options.compile_mode is not None and ratio == COMPILED:
            compiled = Compiled(authors_block, options.compile_mode, keep)
            yield Candidate("authors', compiled", compiled, kept=ratio, flops=flops)
        if keep < options.tokens and not options.baselines:
            yield _baseline(options, f"tome:all:{1 - ratio:.1f}")
        for name in options.backends:
            ours, own = Routed(keep, name), {"kept": ratio, "ours": True}
            flops = _flops(options, keep, cache_text_kv=True)
            yield Candidate(f"mod_block {name}", ours.block, ours.verify, flops=flops, **own)
        yield Candidate("route + gather + scatter", way.row_steps, kept=ratio, ours=True)
        yield Candidate("adaLN + gate + residual", way.unrouted_steps, kept=ratio, ours=True)
    for name in options.baselines:
        yield _baseline(options, name)


def _baseline(options: Options, name: str) -> Candidate:
    """A block by a baseline. It is handed the projected text, as `mod_block` is."""
    kept, method = block_kept(name, options.transformer)
    flops = _flops(options, kept, method, cache_text_kv=True)
    if method == "mod":
        ours = Routed(kept)
        return Candidate(name, ours.block, ours.verify, kept=kept / options.tokens, flops=flops, ours=True)
    return Candidate(name, Changed(name), kept=kept / options.tokens, flops=flops)


@dataclass(frozen=True)
class Changed:
    """A case by the training-free baseline of this name."""

    name: str

    def __call__(self, case: BlockCase) -> Tensor:
        side = isqrt(case.tokens)
        if side**2 != case.tokens:
            raise ValueError(f"tokens={case.tokens} must be a square: the image is one")
        call, x = raw_block("mod_block", **case.arguments(case.tokens)).call, case.x
        run = run_of("mod_block", "auto", "auto", x, direct=True)
        call = parse_baseline(self.name).alone(call, run, (side, side))
        rows = every_row(*x.shape[:2], x.device)
        return routed(call, rows, x.new_zeros(x.shape[:2]), Rescale("none"), run)


@dataclass(frozen=True)
class Routed:
    """The ways to run a case whose samples keep so many tokens."""

    keep: int
    backend: str = "auto"
    """Of ours."""

    def authors(self, case: BlockCase) -> Tensor:
        return authors_block(case.block, case.x, case.timestep, case.text, case.router_weight, self.keep)

    def block(self, case: BlockCase) -> Tensor:
        return mod_block(**case.arguments(self.keep), backend=self.backend)

    def row_steps(self, case: BlockCase) -> Tensor:
        return case.row_steps(self.keep)

    def unrouted_steps(self, case: BlockCase) -> Tensor:
        return case.unrouted_steps(self.keep)

    def verify(self, case: BlockCase) -> None:
        """Assert that `mod_block` is within the error budget for the first and the last sample of a case."""
        arguments = case.arguments(self.keep)
        whole = self.block(case)
        for sample in {0, case.x.shape[0] - 1}:
            own = dict(arguments)
            for name in ("x", "modulation", "context_kv"):
                own[name] = arguments[name][sample : sample + 1]
            router = own["x"], own["router_weight"], own["keep"]
            own["index"] = route(*router, backend=self.backend)[0]
            peer, gold = reference.mod_block(**own), reference.mod_block(**cast(own, torch.float64))
            name = f"mod_block {self.backend}, {self.keep} of {case.tokens} kept"
            check_budget(name, whole[sample : sample + 1], peer, gold)


class Compiled:
    """A block by inductor: the weights of a case are inputs of the graph, so that one serves all cases."""

    def __init__(self, function: Callable[..., Tensor], mode: str, *constants: Any):
        """function: (block, x [B, N, D], timestep [B, 6 D], text [B, M, D], router_weight [D], constants)."""
        self.function = torch.compile(function, mode=mode, dynamic=False)
        self.constants = constants

    def __call__(self, case: BlockCase) -> Tensor:
        inputs = case.block, case.x, case.timestep, case.text, case.router_weight
        return self.function(*inputs, *self.constants)


def _dense(block, x, timestep, text, router_weight):
    return block(x, timestep=timestep, encoder_hidden_states=text)


def _dense_by_flash(*inputs):
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return _dense(*inputs)


def _dense_by_cudnn(*inputs):
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return _dense(*inputs)


DENSE_BY = {"flash": _dense_by_flash, "cudnn": _dense_by_cudnn}
"""Attentions that the compiled dense block is timed with besides torch's own choice."""
