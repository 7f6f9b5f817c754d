"""Every kernel on small inputs, forward and backward: what compute-sanitizer runs.

No matrix products of torch: that library has reports of its own.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from diffratio_kernels._backends import kernels
from diffratio_kernels.testing.cases import CASE, operator_calls
from diffratio_kernels.types import Finish, Linear, PackedRows, Rescale

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ("cuda", "triton") if DEVICE == "cuda" else ("cpu",)
CASES = {
    torch.bfloat16: CASE,
    torch.float32: replace(CASE, batch=3, tokens=300, keep=(300, 97, 0), heads=1, head_dim=24),
    torch.float16: replace(CASE, batch=1, tokens=33, keep=(10,), heads=16, rescale="output"),
}


def check(name: str, results: tuple[torch.Tensor, ...]) -> None:
    """Every element was written, with a number."""
    assert all(t.isfinite().all() for t in results if t.is_floating_point()), name


def operators(backend: str) -> int:
    """Row steps and attention; how many calls."""
    done = 0
    for dtype, case in CASES.items():
        for op, call in operator_calls(backend, dtype, DEVICE, case=case).items():
            if op not in ("mod_block", "two_bin_block", "mlp"):
                for name, run in call.runs().items():
                    check(f"{op} {backend} {dtype} {name}", run())
                    done += 1
    return done


def selection(backend: str) -> None:
    """In one tile and in several, in one bin and in two, with equal counts and with unequal ones."""
    select = kernels("route", backend).select
    for tokens in (1, 48, 5000, 40000):
        logits = torch.randn(2, tokens).to(DEVICE)
        for counts in ([tokens // 2, tokens], [tokens, tokens]):
            for counts_small in (None, [tokens // 3, 1]):
                index, cu_seqlens, row_map = select(logits, counts, counts_small)
                assert index.max() == 2 * tokens - 1 and cu_seqlens[-1] == sum(counts)
                assert row_map.max() == sum(counts) - 1


def products() -> None:
    """The MLP's first product, the second one's backward, and those that end in the residual stream."""
    for dtype in (torch.bfloat16, torch.float32):
        shapes = (130, 40), (136, 40), (136,), (40, 136)
        rows, weight, bias, next_weight = (torch.randn(shape).to(DEVICE, dtype) for shape in shapes)
        mlp, fc1, fc2 = kernels("mlp", "triton"), Linear(weight, bias), Linear(next_weight)
        pre = torch.empty(130, 136, dtype=dtype, device=DEVICE)
        inner = mlp.linear_gelu(rows, fc1, pre=pre)
        check(f"linear_gelu {dtype}", (inner, pre, *mlp.linear_gelu_backward(rows, next_weight, pre)))
        x, hidden, gate = (
            torch.randn(shape).to(DEVICE, dtype) for shape in ((2, 99, 40), (130, 40), (2, 40))
        )
        packed = PackedRows(torch.randperm(198)[:130].to(DEVICE), 99)
        scores = torch.randn(2, 99).to(DEVICE), Rescale("residual")
        call = Finish(x, packed, hidden, inner, gate, *scores)
        add = kernels("fused_linear", "gate_residual").linear_gate_residual
        joined = (add(residual, inner, fc2, gate, packed) for residual in (hidden, x))
        put = kernels("fused_linear", "scatter").linear_scatter(call, fc2)
        check(f"linear_gate_residual and linear_scatter {dtype}", (*joined, put))


def main() -> None:
    calls = 0
    for backend in BACKENDS:
        calls += operators(backend)
        selection(backend)
    if DEVICE == "cuda":
        products()
        torch.cuda.synchronize()
    print(f"{calls} calls of operators by {' and '.join(BACKENDS)}: every result is finite")


if __name__ == "__main__":
    main()
