"""`gate_residual` and `scatter_rescale` of a branch that is normed before its gate."""

import pytest
import torch
import torch.nn.functional as F

import diffratio_kernels as dk
from diffratio_kernels._backends import unavailable_reason
from diffratio_kernels.types import RowNorm

B, N, D = 2, 37, 24
INDEX = torch.cat([torch.arange(0, 37, 2), 37 + torch.arange(0, 37, 3)])
T = len(INDEX)
KERNELS = [
    (backend, dtype)
    for backend, dtype in (("cpu", torch.float64), ("triton", torch.float32))
    if unavailable_reason(backend, "cpu") is None
]
NORMS = {
    "rms": ("rms", True, False),
    "rms without weight": ("rms", False, False),
    "layer": ("layer", True, True),
    "layer without bias": ("layer", True, False),
    "rms with a bias alone": ("rms", False, True),
}
RESCALE = ("mlp", "residual", "output", "none")


def drawn(name, dtype, requires_grad=False):
    torch.manual_seed(0)
    kind, weighted, biased = NORMS[name]
    tensors = {
        "x": torch.randn(B, N, D), "hidden": torch.randn(T, D), "branch": 3 + torch.randn(T, D),
        "gate": torch.randn(B, D), "logits": torch.randn(B, N),
        "norm_weight": 1 + torch.randn(D) / 3 if weighted else None,
        "norm_bias": torch.randn(D) if biased else None,
    }  # fmt: skip
    tensors = {
        n: None if t is None else t.to(dtype).requires_grad_(requires_grad) for n, t in tensors.items()
    }
    return tensors, {"norm": kind, "norm_eps": 0.1}


def finished(a, options, rescale=None, **more):
    """`scatter_rescale`, without a mode `gate_residual`."""
    vectors = {n: a[n] for n in ("norm_weight", "norm_bias")}
    if rescale is None:
        return dk.gate_residual(a["hidden"], a["branch"], a["gate"], INDEX, N, **vectors, **options, **more)
    parts = a["hidden"], a["branch"], a["gate"], a["logits"]
    return dk.scatter_rescale(a["x"], INDEX, *parts, rescale, 2.0, **vectors, **options, **more)


def normed(name, row, weight, bias):
    if NORMS[name][0] == "layer":
        return F.layer_norm(row, (D,), weight, bias, 0.1)
    row = F.rms_norm(row, (D,), weight, 0.1)
    return row if bias is None else row + bias


@pytest.mark.parametrize(("backend", "dtype"), [*KERNELS, ("reference", torch.float64)])
@pytest.mark.parametrize("name", NORMS)
def test_the_gate_multiplies_the_normed_branch(name, backend, dtype):
    a, options = drawn(name, dtype)
    added = finished(a, options, backend=backend)
    put = finished(a, options, "mlp", backend=backend).flatten(0, 1)
    for t, i in enumerate(INDEX.tolist()):
        update = a["gate"][i // N] * normed(name, a["branch"][t], a["norm_weight"], a["norm_bias"])
        torch.testing.assert_close(added[t], a["hidden"][t] + update)
        score = 2 * a["logits"].flatten()[i].sigmoid()
        torch.testing.assert_close(put[i], a["hidden"][t] + score * update)


@pytest.mark.parametrize(("backend", "dtype"), KERNELS)
@pytest.mark.parametrize("rescale", [None, *RESCALE])
@pytest.mark.parametrize("name", NORMS)
def test_gradients_are_those_of_the_reference(name, rescale, backend, dtype):
    found = []
    for way in (backend, "reference"):
        a, options = drawn(name, dtype, requires_grad=True)
        out = finished(a, options, rescale, backend=way)
        leaves = [t for n, t in a.items() if t is not None and (rescale or n not in ("x", "logits"))]
        grads = torch.autograd.grad(
            out, leaves, out.detach().flip(-1), allow_unused=True, materialize_grads=True
        )
        assert len(grads) == len(leaves)
        found.append(grads)
    for grad, right in zip(*found, strict=True):
        torch.testing.assert_close(grad, right, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("rescale", [None, "residual"])
@pytest.mark.parametrize("name", ["rms", "layer"])
def test_gradients_against_finite_differences(name, rescale):
    for backend in ("cpu", "reference"):
        if unavailable_reason(backend, "cpu") is None:
            a, options = drawn(name, torch.float64, requires_grad=True)
            names = [n for n, t in a.items() if t is not None and (rescale or n not in ("x", "logits"))]

            def of_leaves(*leaves, a=a, options=options, names=names, backend=backend):
                return finished(a | dict(zip(names, leaves, strict=True)), options, rescale, backend=backend)

            assert torch.autograd.gradcheck(of_leaves, [a[n] for n in names], fast_mode=True)


def test_in_place_is_the_same():
    for backend, dtype in KERNELS:
        a, options = drawn("layer", dtype)
        expected = finished(a, options, "residual", backend=backend)
        vectors = {n: a[n] for n in ("norm_weight", "norm_bias")}
        parts = a["hidden"], a["branch"], a["gate"], a["logits"]
        dk.scatter_rescale_(a["x"], INDEX, *parts, "residual", 2.0, **vectors, **options, backend=backend)
        assert torch.equal(a["x"], expected)


def test_a_bundle_is_the_norm_too():
    """As it is called where no kernel has the gate."""
    for name, (kind, *_) in NORMS.items():
        a, _ = drawn(name, torch.float32)
        out = RowNorm(kind, a["norm_weight"], a["norm_bias"], 0.1)(a["branch"])
        torch.testing.assert_close(out, normed(name, a["branch"], a["norm_weight"], a["norm_bias"]))


BAD = {
    "norm='batch' must be one of": {"norm": "batch"},
    "norm_weight needs a norm": {"norm": "none"},
    "norm_weight must be": {"norm_weight": torch.randn(D + 1)},
    "norm_bias must be": {"norm_bias": torch.randn(2, D)},
    "norm_eps=0": {"norm_eps": 0.0},
}


@pytest.mark.parametrize("rescale", [None, "mlp"])
@pytest.mark.parametrize("text", BAD)
def test_norms_that_cannot_be_are_named(text, rescale):
    a, options = drawn("rms", torch.float32)
    change = BAD[text]
    a |= {n: t for n, t in change.items() if n in a}
    options |= {n: value for n, value in change.items() if n not in a}
    op = "gate_residual" if rescale is None else "scatter_rescale"
    with pytest.raises(ValueError, match=f"{op}: {text}"):
        finished(a, options, rescale)
