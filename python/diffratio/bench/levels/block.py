"""One PixArt block: dense, compiled, with merged tokens, by the authors' eager code, and by `mod_block`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffratio_kernels import kept_tokens, mod_block, reference, route
from diffratio_kernels.testing.budget import check_budget
from diffratio_kernels.testing.inputs import cast

from ...flops import block_flops
from ..case import BlockCase, dense_name
from ..eager import authors_block
from ..options import Options
from ..peers.tome import tome_block
from ..subject import Candidate, Subject

COMPILED = 0.5
"""Where the authors' code is compiled: every kept count compiles anew, for longer than all is timed."""
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
"""Attentions that the compiled dense block is timed with besides torch's own choice."""

Peer = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor], Tensor]
"""block, x [B, N, D], timestep [B, 6 D], text [B, M, D], router_weight [D] -> [B, N, D]"""


def subjects(options: Options) -> Iterator[Subject]:
    """FLOPs are true ones of a whole batch; `mod_block` is handed the projected text, which sampling projects
    once, the others project it."""
    yield Subject(
        level="block",
        name="PixArt block",
        dtype=options.dtype,
        shape=options.shape(),
        make=partial(BlockCase, options),
        case_bytes=options.weight_bytes() + 2 * options.row_bytes(),
        candidates=(*_dense_candidates(options), *_routed_candidates(options)),
    )


def _flops(options: Options, keep: int | None, **counted) -> int:
    counted = {"cache_text_kv": False} | counted
    return options.batch * block_flops(options.tokens, keep, options.width, options.text, **counted)


def _dense_candidates(options: Options) -> Iterator[Candidate]:
    flops = _flops(options, None)
    yield Candidate(dense_name(), BlockCase.dense, flops=flops)
    if options.compile_mode is not None:
        yield Candidate("dense, compiled", _compiled(_dense, options), flops=flops)
        for name, backend in BACKENDS.items() if options.device == "cuda" else ():
            run = _compiled(partial(_dense_by, backend), options)
            yield Candidate(f"dense, compiled, {name}", run, flops=flops)


def _routed_candidates(options: Options) -> Iterator[Candidate]:
    for ratio in options.kept:
        keep = kept_tokens(round(10 * ratio), options.tokens)
        routed = partial(Candidate, kept=ratio)
        authors = partial(BlockCase.authors, keep=keep)
        yield routed("authors' eager", authors, flops=_flops(options, keep))
        if options.compile_mode is not None and ratio == COMPILED:
            compiled = _compiled(partial(_authors, keep), options)
            yield routed("authors', compiled", compiled, flops=_flops(options, keep))
        if keep < options.tokens:
            merged = _flops(options, keep, method="tome-block")
            yield routed("ToMe", _peer(partial(_tome, keep)), flops=merged)
        for name in options.implementations:
            own = {"keep": keep, "implementation": name}
            run, verify = (partial(function, **own) for function in (BlockCase.ours, check_block))
            flops = _flops(options, keep, cache_text_kv=True)
            yield routed(f"mod_block {name}", run, verify, flops=flops, ours=True)
        yield routed("route + gather + scatter", partial(BlockCase.row_steps, keep=keep), ours=True)
        yield routed("adaLN + gate + residual", partial(BlockCase.unrouted_steps, keep=keep), ours=True)


def _dense(block, x, timestep, text, router_weight):
    return block(x, timestep=timestep, encoder_hidden_states=text)


def _dense_by(backend: SDPBackend, *inputs):
    with sdpa_kernel(backend):
        return _dense(*inputs)


def _authors(keep: int, *inputs):
    return authors_block(*inputs, keep)


def _tome(left: int, block, x, timestep, text, router_weight):
    return tome_block(block, x, timestep, text, left)


def _peer(function: Peer) -> Callable[[BlockCase], Tensor]:
    return lambda case: function(case.block, case.x, case.timestep, case.text, case.router_weight)


def _compiled(function: Peer, options: Options) -> Callable[[BlockCase], Tensor]:
    """By inductor: the weights of a case are inputs of the graph, so that one serves all cases."""
    return _peer(torch.compile(function, mode=options.compile_mode, dynamic=False))


def check_block(case: BlockCase, keep: int, implementation: str) -> None:
    """Assert that `mod_block` is within the error budget for the first and the last sample of a case."""
    arguments = case.arguments(keep)
    whole = mod_block(**arguments, implementation=implementation)
    for sample in {0, case.x.shape[0] - 1}:
        own = dict(arguments)
        for name in ("x", "modulation", "context_kv"):
            own[name] = arguments[name][sample : sample + 1]
        router = own["x"], own["router_weight"], own["keep"]
        own["index"] = route(*router, implementation=implementation)[0]
        peer, gold = reference.mod_block(**own), reference.mod_block(**cast(own, torch.float64))
        name = f"mod_block {implementation}, {keep} of {case.tokens} kept"
        check_budget(name, whole[sample : sample + 1], peer, gold)
