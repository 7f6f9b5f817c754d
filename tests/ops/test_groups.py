"""Groups of tokens with a modulation of their own, in every row operator: rows, gradients, and no atomics."""

import pytest
import torch
import torch.nn.functional as F

import diffratio_kernels as dk
from diffratio_kernels._backends import unavailable_reason

B, N, D = 2, 45, 24
INDEX = torch.cat([torch.arange(0, 45, 2), 45 + torch.arange(0, 45, 3)])
T = len(INDEX)
KERNELS = [
    (backend, dtype)
    for backend, dtype in (("cpu", torch.float64), ("triton", torch.float32))
    if unavailable_reason(backend, "cpu") is None
]
samples, places = torch.arange(B)[:, None], torch.arange(N)
GROUPS = {
    "one for each token": samples * N + places,
    "two for each sample": 2 * samples + (places >= 7),
    "shared by samples, one of nobody": (places % 3 + samples * 0) * 2,
    "in no order": (samples * N + places) * 7 % 11,
}


def drawn(groups, dtype):
    torch.manual_seed(0)
    owners = int(groups.max()) + 2
    vectors = torch.randn(3, owners, D, dtype=dtype).unbind(0)
    rows = torch.randn(2, T, D, dtype=dtype).unbind(0)
    return torch.randn(B, N, D, dtype=dtype), torch.randn(B, N, dtype=dtype), vectors, rows


@pytest.mark.parametrize("backend", [*KERNELS, ("reference", torch.float64)], ids=lambda b: b[0])
@pytest.mark.parametrize("name", GROUPS)
def test_each_row_has_the_modulation_of_its_group(name, backend):
    (backend, dtype), groups = backend, GROUPS[name]
    x, logits, (shift, scale, gate), (hidden, branch) = drawn(groups, dtype)
    options = {"groups": groups, "backend": backend}
    rows, normed = dk.gather_adaln(x, INDEX, shift, scale, norm="rms", **options)
    layer = dk.adaln(hidden, INDEX, N, shift, scale, **options)
    added = dk.gate_residual(hidden, branch, gate, INDEX, N, **options)
    put = dk.scatter_rescale(x, INDEX, hidden, branch, gate, logits, "none", **options)
    dk.scatter_rescale_(again := x.clone(), INDEX, hidden, branch, gate, logits, "none", **options)
    for t, i in enumerate(INDEX.tolist()):
        own = groups.flatten()[i]
        unit = F.rms_norm(rows[t], (D,), eps=1e-6)
        torch.testing.assert_close(normed[t], unit * (1 + scale[own]) + shift[own])
        unit = F.layer_norm(hidden[t], (D,), eps=1e-6)
        torch.testing.assert_close(layer[t], unit * (1 + scale[own]) + shift[own])
        expected = hidden[t] + gate[own] * branch[t]
        torch.testing.assert_close(added[t], expected)
        torch.testing.assert_close(put.flatten(0, 1)[i], expected)
    assert torch.equal(again, put) and torch.equal(rows, x.flatten(0, 1)[INDEX])


def gradients(groups, backend, dtype):
    x, logits, vectors, rows = drawn(groups, dtype)
    leaves = [t.clone().requires_grad_() for t in (x, *vectors, *rows, logits)]
    x, shift, scale, gate, hidden, branch, logits = leaves
    options = {"groups": groups, "backend": backend}
    outs = (
        *dk.gather_adaln(x, INDEX, shift, scale, norm="rms", **options),
        dk.adaln(hidden, INDEX, N, shift, scale, norm="layer", **options),
        dk.gate_residual(hidden, branch, gate, INDEX, N, **options),
        dk.scatter_rescale(x, INDEX, hidden, branch, gate, logits, "residual", **options),
    )
    found = []
    for out in outs:
        incoming, options = out.detach().flip(-1), {"retain_graph": True, "allow_unused": True}
        found += torch.autograd.grad(out, leaves, incoming, materialize_grads=True, **options)
    return found


@pytest.mark.parametrize(("backend", "dtype"), KERNELS)
@pytest.mark.parametrize("name", GROUPS)
def test_gradients_add_up_over_the_rows_of_each_group(name, backend, dtype):
    """Groups that no row has get zeros."""
    found, expected = (gradients(GROUPS[name], way, dtype) for way in (backend, "reference"))
    for grad, right in zip(found, expected, strict=True):
        torch.testing.assert_close(grad, right, atol=2e-5, rtol=2e-5)
    again = gradients(GROUPS[name], backend, dtype)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize(("backend", "dtype"), [*KERNELS, ("reference", torch.float64)])
def test_a_group_for_each_sample_is_no_groups(backend, dtype):
    x, logits, vectors, (hidden, branch) = drawn(samples + 0 * places, dtype)
    shift, scale, gate = (t[:B] for t in vectors)
    results = []
    for groups in (None, samples + 0 * places):
        options = {"groups": groups, "backend": backend}
        results.append((
            *dk.gather_adaln(x, INDEX, shift, scale, **options),
            dk.gate_residual(hidden, branch, gate, INDEX, N, **options),
            dk.scatter_rescale(x, INDEX, hidden, branch, gate, logits, **options),
        ))  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


BAD = {
    "groups must be": torch.zeros(B, N + 1, dtype=torch.int64),
    "groups must be of dtype int64": torch.zeros(B, N, dtype=torch.int32),
    "groups holds 4, must be in 0..3": torch.full((B, N), 4),
    "groups holds -1": torch.full((B, N), -1),
}


@pytest.mark.parametrize("text", BAD)
def test_groups_that_cannot_be_are_named(text):
    x, logits, _, (hidden, branch) = drawn(torch.zeros(B, N, dtype=torch.int64), torch.float32)
    shift, scale, gate = torch.randn(3, 4, D)
    for op, call in {
        "gather_adaln": lambda **k: dk.gather_adaln(x, INDEX, shift, scale, **k),
        "adaln": lambda **k: dk.adaln(hidden, INDEX, N, shift, scale, **k),
        "gate_residual": lambda **k: dk.gate_residual(hidden, branch, gate, INDEX, N, **k),
        "scatter_rescale": lambda **k: dk.scatter_rescale(x, INDEX, hidden, branch, gate, logits, **k),
    }.items():
        with pytest.raises((ValueError, TypeError), match=f"{op}: {text}"):
            call(groups=BAD[text])
