"""Latency of one block: dense, compiled, the authors' eager code and `mod_block`, with a cold L2 cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from diffratio_kernels import kept_tokens, mod_block, reference, route
from diffratio_kernels.testing.budget import check_budget
from diffratio_kernels.testing.inputs import cast

from ..flops import block_flops
from .case import BlockCase, dense_name
from .timing import rotating_medians, rotations

KEPT = (1.0, 0.8, 0.7, 0.5, 0.3)


@torch.no_grad()
def block_latency(
    batch: int,
    tokens: int,
    implementations: Sequence[str],
    width: int = 1152,
    heads: int = 16,
    text: int = 120,
    kept: Sequence[float] = KEPT,
    rounds: int = 30,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cuda",
    compiled: bool = True,
    progress: bool = True,
) -> list[dict]:
    """One row per candidate, kept ratio and mode ("graph": CUDA graphs on all sides; "eager").

    A row holds name, kept, mode, batch, tokens, flops, seconds and `of_dense`, the time as a part of the
    dense block's in the same run and mode. On the CPU there is no "graph" and no seconds: ratios only.
    AssertionError where an implementation is outside the error budget: then nothing is timed.
    """
    first = BlockCase(batch, tokens, width, heads, text, dtype, device)
    keep = {ratio: kept_tokens(round(10 * ratio), tokens) for ratio in kept}
    for implementation in implementations:
        for k in keep.values():
            check_case(first, k, implementation)
    count = rotations(_bytes(first), device)
    cases = [first] + [
        BlockCase(batch, tokens, width, heads, text, dtype, device, seed) for seed in range(1, count)
    ]
    dense = dense_name(first.block), 1.0
    candidates = {dense: [case.dense for case in cases]}
    if compiled:
        candidates["the same, compiled", 1.0] = _compiled(cases)
    for ratio, k in keep.items():
        candidates["authors' eager", ratio] = [_bind(case.authors, k) for case in cases]
        for implementation in implementations:
            calls = [_bind(case.ours, k, implementation) for case in cases]
            candidates[f"mod_block {implementation}", ratio] = calls
    rows = []
    for mode in ("eager",) if device == "cpu" else ("graph", "eager"):
        seconds = rotating_medians(candidates, rounds, device, mode == "graph", progress)
        for (name, ratio), value in seconds.items():
            rows.append({
                "name": name, "kept": ratio, "mode": mode, "batch": batch, "tokens": tokens,
                "flops": batch * _flops(name, keep[ratio], tokens, width, text),
                "of_dense": value / seconds[dense],
            } | ({} if device == "cpu" else {"seconds": value}))  # fmt: skip
    return rows


def _bind(function: Callable, *args) -> Callable[[], object]:
    return lambda: function(*args)


def _run_dense(block, x, timestep, text):
    return block(x, timestep=timestep, encoder_hidden_states=text)


def _compiled(cases: list[BlockCase]) -> list[Callable[[], object]]:
    function = torch.compile(_run_dense, dynamic=False)
    return [_bind(function, case.block, case.x, case.timestep, case.text) for case in cases]


def _bytes(case: BlockCase) -> int:
    """What one call reads and writes at least: the weights, x and the result."""
    weights = sum(p.numel() for p in case.block.parameters())
    return (weights + 2 * case.x.numel()) * case.x.element_size()


def _flops(name: str, keep: int, tokens: int, width: int, text: int) -> int:
    """True FLOPs of one sample; `mod_block` is given the projected text, the others project it."""
    routed = name.startswith(("authors", "mod_block"))
    cached = name.startswith("mod_block")
    return block_flops(tokens, keep if routed else None, width, text, cache_text_kv=cached)


def check_case(case: BlockCase, keep: int, implementation: str) -> None:
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
        name = f"latency: mod_block {implementation}, {keep} of {case.tokens} kept"
        check_budget(name, whole[sample : sample + 1], peer, gold)
