"""One PixArt block: dense, compiled, with merged tokens, by the authors' eager code, and by `mod_block`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from ..peers.tome import tome_block
from ..subject import Candidate, Subject

KEPT = (1.0, 0.8, 0.7, 0.5, 0.3)
COMPILED = 0.5
"""Where the authors' code is compiled: every kept count compiles anew, for longer than all is timed."""
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
"""Attentions that the compiled dense block is timed with besides torch's own choice."""

Peer = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor], Tensor]
"""block, x [B, N, D], timestep [B, 6 D], text [B, M, D], router_weight [D] -> [B, N, D]"""


def block(
    batch: int,
    tokens: int,
    implementations: Sequence[str],
    kept: Sequence[float] = KEPT,
    width: int = 1152,
    heads: int = 16,
    text: int = 120,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cuda",
    compile_mode: str | None = "default",
) -> Subject:
    """kept: parts of the tokens, in tenths. compile_mode: of torch.compile; None leaves compiled peers out.

    FLOPs are true ones of a whole batch; `mod_block` is handed the projected text, which sampling projects
    once, the others project it.
    """
    counts = {ratio: kept_tokens(round(10 * ratio), tokens) for ratio in kept}

    def flops(keep: int | None, **options) -> int:
        return batch * block_flops(tokens, keep, width, text, **{"cache_text_kv": False} | options)

    def candidates() -> Iterator[Candidate]:
        yield Candidate(dense_name(), _peer(_dense), flops=flops(None))
        compiled = partial(_compiled, mode=compile_mode)
        if compile_mode is not None:
            yield Candidate("dense, compiled", compiled(_dense), flops=flops(None))
            for name, backend in BACKENDS.items():
                run = compiled(partial(_dense_by, backend))
                yield Candidate(f"dense, compiled, {name}", run, flops=flops(None))
        for ratio, keep in counts.items():
            routed = partial(Candidate, kept=ratio)
            authors = partial(_authors, keep)
            yield routed("authors' eager", _peer(authors), flops=flops(keep))
            if compile_mode is not None and ratio == COMPILED:
                yield routed("authors', compiled", compiled(authors), flops=flops(keep))
            if keep < tokens:
                merged = flops(keep, method="tome-block")
                yield routed("ToMe", _peer(partial(_tome, keep)), flops=merged)
            for name in implementations:
                own = {"keep": keep, "implementation": name}
                run, verify = (partial(function, **own) for function in (BlockCase.ours, check_block))
                yield routed(f"mod_block {name}", run, verify, flops=flops(keep, cache_text_kv=True))
            yield routed("route + gather + scatter", partial(BlockCase.row_steps, keep=keep))

    weights = 16 * width * width  # q, k, v, out; cross-attention's four; fc1 and fc2 with 4 D between them
    return Subject(
        level="block",
        name="PixArt block",
        shape={"batch": batch, "tokens": tokens, "width": width, "heads": heads, "text": text},
        make=partial(BlockCase, batch, tokens, width, heads, text, dtype, device),
        case_bytes=(weights + 2 * batch * tokens * width) * dtype.itemsize,
        candidates=tuple(candidates()),
    )


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


def _compiled(function: Peer, mode: str) -> Callable[[BlockCase], Tensor]:
    """By inductor: the weights of a case are inputs of the graph, so that one serves all cases."""
    return _peer(torch.compile(function, mode=mode, dynamic=False))


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
