"""Where a tensor lies in memory does not matter: views and strides give the results of a plain copy."""

import pytest
import torch

import diffratio_kernels as dk
from diffratio_kernels.testing.cases import LAYOUTS, ModBlockCase, TwoBinCase, laid_out, two_bin_arguments

LAYOUTS = [layout for layout in LAYOUTS if layout != "contiguous"]
OPTIONS = {"seed": 0, "tokens": 11, "keep": (7, 7), "ragged_text": True, "router_bias": True}
CASE, TWO_BINS = ModBlockCase(**OPTIONS), TwoBinCase(**OPTIONS, keep_small=(3, 5))
EXACT = ("gather_adaln", "adaln", "scatter_rescale", "activation", "two_bin_gelu", "two_bin_blend")
OPS = (
    "activation",
    "route",
    "gather_adaln",
    "adaln",
    "gate_residual",
    "attention",
    "mlp",
    "scatter_rescale",
    "mod_block",
)
OPS += ("two_bin_gelu", "two_bin_blend", "two_bin_attention", "two_bin_block")


def call_of(op):
    """Valid arguments by name, all contiguous."""
    block = CASE.arguments()
    x, (shift, scale, gate) = block["x"], block["modulation"].unbind(1)[:3]
    index, offsets, logits = dk.route(x, block["router_weight"], 7)
    rows, branch, value = torch.randn(3, 14, 32)
    heads = {"query": rows.view(14, 4, 8), "key": branch.view(14, 4, 8), "value": value.view(14, 4, 8)}
    put = {"hidden": rows, "branch": branch, "gate": gate, "logits": logits, "rescale": "residual"}
    arguments = {
        "route": {name: block[name] for name in ("x", "router_weight", "keep", "router_bias")},
        "gather_adaln": {"x": x, "index": index, "shift": shift, "scale": scale},
        "adaln": {"rows": rows, "index": index, "tokens": 11, "shift": shift, "scale": scale},
        "activation": {"gate": rows, "value": branch, "index": index, "logits": logits, "kind": "silu"},
        "gate_residual": {"hidden": rows, "branch": branch, "gate": gate, "index": index, "tokens": 11},
        "mlp": {"rows": rows} | {n: block[n] for n in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")},
        "attention": heads
        | {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets, "max_seqlen_q": 7, "max_seqlen_k": 7},
        "scatter_rescale": {"x": x, "index": index, **put},
        "mod_block": block | {"index": index},
    }
    two_bins = two_bin_arguments(TWO_BINS)
    two_bins["two_bin_block"]["index"] = two_bins["two_bin_blend"]["index"]
    arguments = (two_bins | arguments)[op]
    return {n: t.contiguous() if isinstance(t, torch.Tensor) else t for n, t in arguments.items()}


def run(op, arguments, grad_layout="contiguous"):
    """All floating outputs and the gradients of all floating arguments, for fixed incoming gradients."""
    leaves = {
        n: t.detach().requires_grad_()
        for n, t in arguments.items()
        if isinstance(t, torch.Tensor) and t.is_floating_point()
    }
    outs = getattr(dk, op)(**arguments | leaves)
    outs = [t for t in (outs if isinstance(outs, tuple) else (outs,)) if t.requires_grad]
    generator = torch.Generator().manual_seed(1)
    incoming = [torch.randn(t.shape, generator=generator) for t in outs]
    if grad_layout == "expanded":
        incoming = [t[:1].expand(t.shape) for t in incoming]
    elif grad_layout != "contiguous":
        incoming = [laid_out(t, grad_layout) for t in incoming]
    grads = torch.autograd.grad(outs, list(leaves.values()), incoming)
    return [t.detach() for t in outs], dict(zip(leaves, grads, strict=True)), incoming


def assert_same(op, actual, expected):
    """The same bits from our row kernels; torch's products and attention may group their sums by stride."""
    for a, b in zip(actual, expected, strict=True):
        if op in EXACT:
            assert torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())
        else:  # up to 60 terms of fp32
            assert (a - b).abs().max() <= 60 * torch.finfo(torch.float32).eps * b.abs().max().clamp(min=1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_layout_of_the_inputs_does_not_matter(op, layout):
    plain = {
        n: laid_out(t, layout).contiguous() if isinstance(t, torch.Tensor) and t.is_floating_point() else t
        for n, t in call_of(op).items()
    }
    strided = {
        n: laid_out(t, layout) if isinstance(t, torch.Tensor) and t.is_floating_point() else t
        for n, t in plain.items()
    }
    (outs, grads, _), (expected, expected_grads, _) = run(op, strided), run(op, plain)
    assert_same(op, outs, expected)
    assert_same(op, grads.values(), expected_grads.values())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_layout_of_the_incoming_gradient_does_not_matter(op, layout):
    arguments = call_of(op)
    _, grads, incoming = run(op, arguments, layout)
    assert any(not t.is_contiguous() or layout == "offset" for t in incoming)
    leaves = {n: arguments[n].detach().requires_grad_() for n in grads}
    outs = getattr(dk, op)(**arguments | leaves)
    outs = [t for t in (outs if isinstance(outs, tuple) else (outs,)) if t.requires_grad]
    expected = torch.autograd.grad(outs, list(leaves.values()), [t.contiguous() for t in incoming])
    assert_same(op, grads.values(), expected)


@pytest.mark.parametrize("op", [op for op in OPS if op != "mlp"])
def test_layout_of_integers_does_not_matter(op):
    """A column of a table is a fine index; what lies between its entries must not be read."""
    arguments = call_of(op)
    if op == "route":
        arguments["index"] = dk.route(**arguments)[0]
    table = {
        n: torch.stack([t, torch.full_like(t, 5)], dim=1)[:, 0]
        for n, t in arguments.items()
        if isinstance(t, torch.Tensor) and not t.is_floating_point()
    }
    assert table and not any(t.is_contiguous() for t in table.values())
    inference, plain = (getattr(dk, op)(**arguments | change) for change in (table, {}))
    assert_same(op, *((t if isinstance(t, tuple) else (t,)) for t in (inference, plain)))
    (outs, grads, _), (expected, expected_grads, _) = run(op, arguments | table), run(op, arguments)
    assert_same(op, outs, expected)
    assert_same(op, grads.values(), expected_grads.values())


@pytest.mark.parametrize("op", OPS)
def test_no_input_is_written_to(op):
    arguments = call_of(op)
    tensors = {name: t for name, t in arguments.items() if isinstance(t, torch.Tensor)}
    before = {name: (t.clone(), t._version) for name, t in tensors.items()}
    getattr(dk, op)(**arguments)
    run(op, arguments)
    for name, t in tensors.items():
        assert torch.equal(t, before[name][0]) and t._version == before[name][1], name
