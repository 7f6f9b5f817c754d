"""Every operator and product of a block, by every implementation, beside plain PyTorch and libraries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from diffratio_kernels import kept_tokens, ops, reference
from diffratio_kernels.testing.budget import check_budget
from diffratio_kernels.testing.calls import Call, operator_calls
from diffratio_kernels.testing.inputs import ModBlockCase, cast

from ..options import Options
from ..peers.rows import PEERS
from ..subject import Candidate, Subject
from ..work import case_of, operator_work
from . import handed_logits, products

NOT_ALONE = ("mod_block", "mod_block_next", "two_bin_block", "two_bin_attention")
"""Levels of their own; two-bin attention is in the training level's block."""
ATTENTIONS = ("sdpa", "triton", "cudnn", "varlen", "flash_attn")


def subjects(options: Options) -> Iterator[Subject]:
    """One subject per operator and kept part, forward only."""
    for kept in options.kept:
        yield from _operators(options, kept)


def _operators(options: Options, kept: float) -> Iterator[Subject]:
    keep = kept_tokens(round(10 * kept), options.tokens)
    case = case_of(options, keep)
    calls = operator_calls("auto", options.dtype, options.device, case=case)
    calls = {op: call for op, call in calls.items() if op not in NOT_ALONE}
    calls["cross_attention"] = _to_text(calls["attention"], case)
    shape = options.shape() | {"keep": keep}
    for op, call in calls.items():
        flops, moved = operator_work(op, case)
        candidate = partial(Candidate, kept=kept, flops=flops, moved=moved)
        candidates = tuple(_candidates(candidate, op, options, keep))
        yield Subject("operator", op, options.dtype, shape, partial(_copy, call), moved, candidates)
    for others in (handed_logits, products):
        yield from others.subjects(options, kept, case, calls["scatter_rescale"])


def _candidates(candidate, op: str, options: Options, keep: int) -> Iterator[Candidate]:
    peer = PEERS.get(op)
    if peer is not None:
        yield candidate("torch eager", lambda call: peer(**_plain(call)))
        if options.compile_mode is not None:
            compiled = torch.compile(peer, mode=options.compile_mode, dynamic=False)
            yield candidate("torch compiled", lambda call: compiled(**_plain(call)))
    attention = op in ("attention", "cross_attention")
    known = ops.IMPLEMENTATIONS["attention" if attention else op.removesuffix("_")]
    for name in dict.fromkeys(ATTENTIONS if attention else (known[-1], *options.implementations)):
        if name in known:
            verify = partial(_check_attention, keep, name) if attention else partial(_check, op, name)
            yield candidate(name, partial(_run, name), verify, ours=name in options.implementations)


def _plain(call: Call) -> dict:
    """The arguments that our operators and plain PyTorch have in common."""
    return {name: value for name, value in call.arguments.items() if name not in ("rescale", "score_scale")}


def _to_text(call: Call, case: ModBlockCase) -> Call:
    """The same queries, M text keys a sample."""
    query = call.arguments["query"]
    rows = case.batch * case.text
    text = {name: torch.randn(rows, *query.shape[1:]).to(query) for name in ("key", "value")}
    offsets = reference.packed_offsets([case.text] * case.batch, query.device)
    return replace(call, arguments=call.arguments | text | {"key_offsets": offsets, "max_key": case.text})


def _copy(call: Call, seed: int) -> Call:
    """The same call on buffers of its own, by no implementation yet. In place without the copy that keeps x
    as it was: other rows come out each time, as fast."""
    arguments = {n: t.clone() if isinstance(t, Tensor) else t for n, t in call.arguments.items()}
    del arguments["implementation"]
    return replace(
        call, arguments=arguments, function=call.function if call.differentiable else ops.scatter_rescale_
    )


def _run(implementation: str, call: Call) -> object:
    return call.function(**call.arguments, implementation=implementation)


def _check(op: str, implementation: str, call: Call) -> None:
    """Assert that every floating result is within the budget of eager PyTorch, the last implementation."""
    eager = ops.IMPLEMENTATIONS[op.removesuffix("_")][-1]
    gold = replace(call, arguments=cast(call.arguments, torch.float64))
    results = (_results(each, name) for each, name in ((call, implementation), (call, eager), (gold, eager)))
    for result, *others in zip(*results, strict=True):
        if result.is_floating_point():
            check_budget(f"{op} {implementation}", result, *others)


def _results(call: Call, implementation: str) -> tuple[Tensor, ...]:
    """In place it is a copy that is overwritten."""
    if call.function is not ops.scatter_rescale_:
        return replace(call, arguments=call.arguments | {"implementation": implementation}).forward()
    x = call.arguments["x"].clone()
    call.function(**call.arguments | {"x": x}, implementation=implementation)
    return (x,)


def _check_attention(keep: int, implementation: str, call: Call) -> None:
    """Assert that the first head of the first sample is within the budget."""
    out = _run(implementation, call)
    keys = call.arguments["max_key"]
    query, key, value = (
        call.arguments[name][:rows, :1] for name, rows in (("query", keep), ("key", keys), ("value", keys))
    )
    packing = *(reference.packed_offsets([rows], out.device) for rows in (keep, keys)), keep, keys
    peer = reference.attention(query, key, value, *packing)
    gold = reference.attention(*(t.double() for t in (query, key, value)), *packing)
    check_budget(f"attention {implementation}", out[:keep, :1], peer, gold)
