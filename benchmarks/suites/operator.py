"""Every operator and product of a block, by every backend, beside plain PyTorch and libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffratio_kernels import kept_tokens, reference, scatter_rescale_
from diffratio_kernels._backends import BACKENDS
from diffratio_kernels.testing.budget import check_budget
from diffratio_kernels.testing.cases import Call, ModBlockCase, cast, operator_calls
from diffratio_kernels.types import Seqlens

from ..harness.options import Options
from ..harness.subject import Candidate, Subject
from ..peers import libraries
from ..peers.rows import PEERS
from . import products
from .case import cost_of, operator_case

NOT_ALONE = ("mod_block", "two_bin_block", "two_bin_attention")
"""Suites of their own; two-bin attention is in the training suite's block."""
ATTENTIONS = ("sdpa", "triton", "cudnn", "varlen", "flash_attn")


def subjects(options: Options) -> Iterator[Subject]:
    """One subject per operator and kept part, forward only."""
    for kept in options.kept:
        yield from _operators(options, kept)


def _operators(options: Options, kept: float) -> Iterator[Subject]:
    keep = kept_tokens(round(10 * kept), options.tokens)
    case = operator_case(options, keep)
    calls = operator_calls("auto", options.dtype, options.device, case=case)
    calls = {op: call for op, call in calls.items() if op not in NOT_ALONE}
    calls["cross_attention"] = _to_text(calls["attention"], case)
    shape = options.shape() | {"keep": keep}
    for op, call in calls.items():
        cost = cost_of(op, options, keep)
        about = {"kept": kept, "flops": cost.operations, "moved": cost.bytes}
        candidates = (*_peers(op, options, about), *_backends(op, options, keep, about))
        yield Subject("operator", op, options.dtype, shape, Copies(call), cost.bytes, candidates)
    yield from products.subjects(options, kept, keep, calls["scatter_rescale"])


def _peers(op: str, options: Options, about: dict) -> Iterator[Candidate]:
    peer = PEERS.get(op)
    if peer is not None:
        yield Candidate("torch eager", Peer(peer), **about)
        if options.compile_mode is not None:
            compiled = torch.compile(peer, mode=options.compile_mode, dynamic=False)
            yield Candidate("torch compiled", Peer(compiled), **about)
    if op == "route":
        yield Candidate("flashinfer", Peer(libraries.route), libraries.check_top_k, **about)
    elif op == "mlp":
        way = QuackMlp(op, "quack")
        yield Candidate("quack", way.run, way.verify, **about)


def _backends(op: str, options: Options, keep: int, about: dict) -> Iterator[Candidate]:
    attends = op in ("attention", "cross_attention")
    known = BACKENDS["attention" if attends else op.removesuffix("_")]
    for name in dict.fromkeys(ATTENTIONS if attends else (known[-1], *options.backends)):
        if name in known:
            way = Attention(op, name, keep) if attends else Operator(op, name)
            yield Candidate(name, way.run, way.verify, ours=name in options.backends, **about)


def _to_text(call: Call, case: ModBlockCase) -> Call:
    """The same queries, M text keys a sample."""
    query = call.arguments["query"]
    rows = case.batch * case.text
    text = {name: torch.randn(rows, *query.shape[1:]).to(query) for name in ("key", "value")}
    cu_seqlens = reference.cu_seqlens_of([case.text] * case.batch, query.device)
    return replace(
        call, arguments=call.arguments | text | {"cu_seqlens_k": cu_seqlens, "max_seqlen_k": case.text}
    )


@dataclass(frozen=True)
class Copies:
    """Seed -> the same call on buffers of its own, by no backend yet.

    In place without the copy that keeps x as it was: other rows come out each time, as fast."""

    call: Call

    def __call__(self, seed: int) -> Call:
        arguments = {n: t.clone() if isinstance(t, Tensor) else t for n, t in self.call.arguments.items()}
        del arguments["backend"]
        function = self.call.function if self.call.differentiable else scatter_rescale_
        return replace(self.call, arguments=arguments, function=function)


@dataclass(frozen=True)
class Peer:
    """Plain PyTorch, on the arguments that it has in common with our operator."""

    function: Callable[..., object]

    def __call__(self, call: Call) -> object:
        common = {n: value for n, value in call.arguments.items() if n not in ("rescale", "score_scale")}
        return self.function(**common)


@dataclass(frozen=True)
class Operator:
    """An operator by one backend."""

    op: str
    backend: str

    def run(self, call: Call) -> object:
        return call.function(**call.arguments, backend=self.backend)

    def results(self, call: Call) -> tuple[Tensor, ...]:
        """What is held against the budget."""
        return _results(call, self.backend)

    def verify(self, call: Call) -> None:
        """Assert that every floating result is within the budget of eager PyTorch, the last backend."""
        eager = BACKENDS[self.op.removesuffix("_")][-1]
        gold = replace(call, arguments=cast(call.arguments, torch.float64))
        results = self.results(call), _results(call, eager), _results(gold, eager)
        for result, *others in zip(*results, strict=True):
            if result.is_floating_point():
                check_budget(f"{self.op} {self.backend}", result, *others)


def _results(call: Call, backend: str) -> tuple[Tensor, ...]:
    """In place it is a copy that is overwritten."""
    if call.function is not scatter_rescale_:
        return replace(call, arguments=call.arguments | {"backend": backend}).forward()
    x = call.arguments["x"].clone()
    call.function(**call.arguments | {"x": x}, backend=backend)
    return (x,)


class QuackMlp(Operator):
    """The MLP by QuACK, the GELU in the epilogue of its first product."""

    def run(self, call: Call) -> Tensor:
        names = "rows", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"
        return libraries.quack().mlp(*(call.arguments[name] for name in names))

    def results(self, call: Call) -> tuple[Tensor, ...]:
        return (self.run(call),)


@dataclass(frozen=True)
class Attention(Operator):
    """Attention of `keep` rows of each sample, among themselves or to the text."""

    keep: int

    def verify(self, call: Call) -> None:
        """Assert that the first head of the first sample is within the budget."""
        out = self.run(call)
        counts = self.keep, call.arguments["max_seqlen_k"]
        seqlens = Seqlens(*(reference.cu_seqlens_of([rows], out.device) for rows in counts), *counts)
        rows = dict(zip(("query", "key", "value"), (counts[0], counts[1], counts[1]), strict=True))
        first = [call.arguments[name][:count, :1] for name, count in rows.items()]
        peer = reference.attention(*first, seqlens)
        gold = reference.attention(*(t.double() for t in first), seqlens)
        check_budget(f"attention {self.backend}", out[: self.keep, :1], peer, gold)
