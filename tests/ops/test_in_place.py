"""`scatter_rescale_` writes the kept rows into x itself, for inference."""

import pytest
import torch

import diffratio_kernels as dk
from diffratio_kernels.testing.inputs import ModBlockCase, laid_out

CASE = ModBlockCase(seed=3, keep=(7, 0))


def arguments():
    a = CASE.arguments()
    index, _, logits = dk.route(a["x"], a["router_weight"], CASE.full_keep)
    hidden, branch = torch.randn(2, len(index), 32)
    return a["x"], index, hidden, branch, a["modulation"][:, 2], logits


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("implementation", ["native", "triton", "reference"])
def test_x_becomes_what_the_functional_operator_returns(implementation, layout):
    x, *others = arguments()
    expected = dk.scatter_rescale(x, *others, rescale="residual", implementation=implementation)
    x = laid_out(x, layout)
    assert dk.scatter_rescale_(x, *others, rescale="residual", implementation=implementation) is None
    assert torch.equal(x, expected)


def test_it_is_seen_as_a_mutation_by_the_compiler():
    x, *others = arguments()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(x, *others):
        y = x * 1
        dk.scatter_rescale_(y, *others)
        return y

    assert torch.equal(run(x, *others), dk.scatter_rescale(x, *others))


def test_gradients_are_refused():
    x, *others = arguments()
    with pytest.raises(NotImplementedError, match="scatter_rescale_: .* use scatter_rescale"):
        dk.scatter_rescale_(x.requires_grad_(), *others)
    with pytest.raises(ValueError, match="scatter_rescale: index"):
        dk.scatter_rescale_(x.detach(), torch.full((7,), 99), *others[1:])
