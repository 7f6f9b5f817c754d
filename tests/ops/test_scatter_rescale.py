"""`scatter_rescale` finishes the kept rows, in a copy of x; `scatter_rescale_` does it in x itself."""

import pytest
import torch

import diffratio_kernels as dk
from diffratio_kernels.testing.cases import ModBlockCase, laid_out

CASE = ModBlockCase(seed=3, keep=(7, 0))


def arguments():
    a = CASE.arguments()
    index, _, logits = dk.route(a["x"], a["router_weight"], CASE.full_keep)
    hidden, branch = torch.randn(2, len(index), 32)
    return a["x"], index, hidden, branch, a["modulation"][:, 2], logits


@pytest.mark.parametrize("rescale", ["mlp", "residual", "output", "none"])
@pytest.mark.parametrize(
    ("backend", "dtype"), [("cpu", torch.float64), ("triton", torch.float32), ("reference", torch.float64)]
)
def test_kept_rows_are_finished_and_others_are_as_they_were(backend, dtype, rescale):
    x, index = torch.randn(2, 5, 8, dtype=dtype), torch.tensor([4, 0, 7])
    x[0, 1], x[1, 4] = float("nan"), -0.0
    (hidden, branch), gate = torch.randn(2, 3, 8, dtype=dtype), torch.randn(2, 8, dtype=dtype)
    logits = torch.randn(2, 5, dtype=dtype)
    out = dk.scatter_rescale(x, index, hidden, branch, gate, logits, rescale, 2.0, backend=backend)
    flat, done = x.flatten(0, 1), out.flatten(0, 1)
    for t, i in enumerate(index.tolist()):
        score, update = 2 * logits.flatten()[i].sigmoid(), gate[i // 5] * branch[t]
        expected = {
            "mlp": hidden[t] + score * update,
            "residual": flat[i] + score * (hidden[t] + update - flat[i]),
            "output": score * (hidden[t] + update),
            "none": hidden[t] + update,
        }
        torch.testing.assert_close(done[i], expected[rescale])
    others = [1, 2, 3, 5, 6, 8, 9]
    assert torch.equal(done[others].nan_to_num(7), flat[others].nan_to_num(7))
    assert torch.equal(done[others].signbit(), flat[others].signbit())


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
def test_in_place_x_becomes_what_the_functional_operator_returns(backend, layout):
    x, *others = arguments()
    expected = dk.scatter_rescale(x, *others, rescale="residual", backend=backend)
    x = laid_out(x, layout)
    assert dk.scatter_rescale_(x, *others, rescale="residual", backend=backend) is None
    assert torch.equal(x, expected)


def test_in_place_is_seen_as_a_mutation_by_the_compiler():
    x, *others = arguments()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(x, *others):
        y = x * 1
        dk.scatter_rescale_(y, *others)
        return y

    assert torch.equal(run(x, *others), dk.scatter_rescale(x, *others))


def test_gradients_in_place_are_refused():
    x, *others = arguments()
    with pytest.raises(NotImplementedError, match="scatter_rescale_: .* use scatter_rescale"):
        dk.scatter_rescale_(x.requires_grad_(), *others)
    with pytest.raises(ValueError, match="scatter_rescale: index"):
        dk.scatter_rescale_(x.detach(), torch.full((7,), 99), *others[1:])
