"""The row operators take packed rows in any order: only `route` promises an ascending one.

Our kernels give a row the same bits wherever it stands. The reference runs torch's vector loops, whose last
elements another code computes: there, rows agree to rounding.
"""

import pytest
import torch

import diffratio_kernels as dk
from diffratio_kernels.testing.budget import gradients
from diffratio_kernels.testing.cases import ModBlockCase, TwoBinCase, two_bin_arguments

CASE = ModBlockCase(seed=5, keep=(9, 20))
ROWS = ("gather_adaln", "adaln", "gate_residual", "scatter_rescale")


def arguments(op, index):
    a = CASE.arguments()
    shift, scale, gate = a["modulation"].unbind(1)[:3]
    packed = torch.randn(2, 48, 32, generator=torch.Generator().manual_seed(1))[
        :, index
    ]  # moves with its row
    return {
        "gather_adaln": {"x": a["x"], "index": index, "shift": shift, "scale": scale},
        "adaln": {"rows": packed[0], "index": index, "tokens": 24, "shift": shift, "scale": scale},
        "gate_residual": {
            "hidden": packed[0], "branch": packed[1], "gate": gate, "index": index, "tokens": 24,
        },
        "scatter_rescale": {
            "x": a["x"], "index": index, "hidden": packed[0], "branch": packed[1], "gate": gate,
            "logits": a["x"][..., 0],
        },
    }[op]  # fmt: skip


def assert_same(actual, expected, backend):
    if backend in ("cpu", "triton"):
        assert torch.equal(actual, expected)
    else:
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
@pytest.mark.parametrize("op", ROWS)
def test_a_permuted_index_permutes_the_rows_and_nothing_else(op, backend):
    if op == "gate_residual" and backend == "cpu":
        backend = "auto"
    a = CASE.arguments()
    index = dk.route(a["x"], a["router_weight"], CASE.full_keep)[0]
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(2))

    def run(**leaves):
        out = getattr(dk, op)(**leaves, backend=backend)
        rows = out[1] if isinstance(out, tuple) else out
        back = order.argsort() if leaves["index"] is shuffled and rows.shape[0] == len(index) else slice(None)
        return rows[back]

    shuffled = index[order]
    (out, grads), (expected, expected_grads) = (
        gradients(run, arguments(op, i), seed=0) for i in (shuffled, index)
    )
    assert_same(out, expected, backend)
    for name, grad in grads.items():
        packed = grad.shape[0] == len(index)
        torch.testing.assert_close(
            grad[order.argsort()] if packed else grad, expected_grads[name], rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
def test_both_sets_of_a_sample_may_be_in_any_order(backend):
    """But each row of the small set comes before those that only the large one holds."""
    a = two_bin_arguments(TwoBinCase(seed=5, keep=(9, 20), keep_small=(4, 13)))["two_bin_blend"]
    generator = torch.Generator().manual_seed(2)
    sets = ((0, 4), (4, 9), (9, 22), (22, 29))
    order = torch.cat([first + torch.randperm(last - first, generator=generator) for first, last in sets])
    small = torch.cat([order[:4], order[9:22] - 5])  # of the small rows among themselves
    both = torch.cat([order, 29 + small])
    shuffled = a | {"index": a["index"][order], "hidden": a["hidden"][both], "branch": a["branch"][order]}
    option = {"backend": backend}
    (out, grads), (expected, expected_grads) = (
        gradients(dk.two_bin_blend, each | option, seed=0) for each in (shuffled, a)
    )
    assert_same(out, expected, backend)
    expected_grads |= {"hidden": expected_grads["hidden"][both], "branch": expected_grads["branch"][order]}
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], rtol=0, atol=1e-5)
