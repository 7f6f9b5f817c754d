"""Every kernel on small inputs, forward and backward: what compute-sanitizer runs.

No matrix products of torch: that library has reports of its own.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from diffratio_kernels.kernels.triton import launchers as triton
from diffratio_kernels.ops.dispatch import ROW_KERNELS
from diffratio_kernels.reference import packed_offsets
from diffratio_kernels.testing.calls import CASE, operator_calls

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLEMENTATIONS = ("cuda", "triton") if DEVICE == "cuda" else ("native",)
CASES = {
    torch.bfloat16: CASE,
    torch.float32: replace(CASE, batch=3, tokens=300, keep=(300, 97, 0), heads=1, head_dim=24),
    torch.float16: replace(CASE, batch=1, tokens=33, keep=(10,), heads=16, rescale="output"),
}


def check(name: str, results: tuple[torch.Tensor, ...]) -> None:
    """Every element was written, with a number."""
    assert all(t.isfinite().all() for t in results if t.is_floating_point()), name


def operators(implementation: str) -> int:
    """Row steps and attention; how many calls."""
    done = 0
    for dtype, case in CASES.items():
        for op, call in operator_calls(implementation, dtype, DEVICE, case=case).items():
            if op not in ("mod_block", "two_bin_block", "mlp"):
                for name, run in call.runs().items():
                    check(f"{op} {implementation} {dtype} {name}", run())
                    done += 1
    return done


def selection(implementation: str) -> None:
    """In one tile and in several, in one bin and, on a GPU, in two."""
    for tokens in (1, 48, 5000, 40000):
        logits, keep = torch.randn(2, tokens).to(DEVICE), [tokens // 2, tokens]
        small = torch.tensor([tokens // 3, 1], dtype=torch.int32).to(DEVICE)
        for bins in ((), (small,)) if DEVICE == "cuda" else ((),):
            offsets = packed_offsets(keep, logits.device)
            index = ROW_KERNELS[implementation].topk_select(logits, offsets, sum(keep), *bins)
            assert index.max() == 2 * tokens - 1


def products() -> None:
    """The MLP's first product, the second one's backward, and those that end in the residual stream."""
    for dtype in (torch.bfloat16, torch.float32):
        shapes = (130, 40), (136, 40), (136,), (40, 136)
        rows, weight, bias, next_weight = (torch.randn(shape).to(DEVICE, dtype) for shape in shapes)
        inner, pre = triton.linear_gelu(rows, weight, bias, True)
        check(f"linear_gelu {dtype}", (inner, pre, *triton.linear_gelu_backward(rows, next_weight, pre)))
        x, hidden, gate = (
            torch.randn(shape).to(DEVICE, dtype) for shape in ((2, 99, 40), (130, 40), (2, 40))
        )
        index, logits = torch.randperm(198)[:130].to(DEVICE), torch.randn(2, 99).to(DEVICE)
        args = inner, next_weight, None, gate
        joined = (triton.linear_gate_residual(residual, *args, index, 99) for residual in (hidden, x))
        put = triton.linear_scatter(x, index, hidden, *args, logits, "residual", 1.0)
        check(f"linear_gate_residual and linear_scatter {dtype}", (*joined, put))


def main() -> None:
    calls = 0
    for implementation in IMPLEMENTATIONS:
        calls += operators(implementation)
        selection(implementation)
    if DEVICE == "cuda":
        products()
        torch.cuda.synchronize()
    print(f"{calls} calls of operators by {' and '.join(IMPLEMENTATIONS)}: every result is finite")


if __name__ == "__main__":
    main()
