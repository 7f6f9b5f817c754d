"""Every operator is a good citizen of PyTorch: schema, autograd registration, fake tensors, AOT autograd."""

import pytest
import torch
from torch.library import opcheck
from torch.testing._internal.optests import aot_autograd_check

from diffratio_kernels.testing.cases import ModBlockCase, TwoBinCase, two_bin_arguments

UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
SMALL = {"seed": 0, "tokens": 9, "heads": 1, "hidden": 8, "router_bias": True}
CASES = {
    "uniform": ModBlockCase(**SMALL, keep=(5,)),
    "per sample": ModBlockCase(**SMALL, keep=(3, 7), ragged_text=True),
    "no text": ModBlockCase(**SMALL, keep=(9, 0), text=None, biases=False),
}

TWO_BINS = {
    "uniform": TwoBinCase(**SMALL, keep=(5,), keep_small=(2,)),
    "per sample": TwoBinCase(**SMALL, keep=(3, 7), keep_small=(3, 0), ragged_text=True),
    "no text": TwoBinCase(**SMALL, keep=(9, 0), keep_small=(4, 0), text=None, biases=False),
    "one bin": TwoBinCase(**SMALL, keep=(5,), keep_small=(2,), weight_large=(1.0, 1.0)),
}


@pytest.fixture(params=[False, True], ids=["inference", "training"])
def wants_gradient(request):
    return request.param


def check(op, arguments, wants_gradient, utilities=UTILITIES):
    """`opcheck` with the arguments given by name; returns them as the schema wants them."""
    leaves = {
        name: t.detach().clone().requires_grad_(wants_gradient)
        for name, t in arguments.items()
        if isinstance(t, torch.Tensor) and t.is_floating_point()
    }
    arguments = arguments | leaves
    overload = getattr(torch.ops.diffratio, op).default
    schema = overload._schema.arguments
    args = tuple(arguments[a.name] for a in schema if not a.kwarg_only)
    kwargs = {a.name: arguments[a.name] for a in schema if a.kwarg_only and a.name in arguments}
    results = opcheck(overload, args, kwargs, test_utils=utilities)
    assert results == dict.fromkeys(utilities, "SUCCESS")
    return args, kwargs


def selected(case):
    """The arguments of the row operators after routing."""
    a = case.arguments()
    x, (shift, scale, gate) = a["x"], a["modulation"].unbind(1)[:3]
    index, offsets, logits = torch.ops.diffratio.route(x, a["router_weight"], case.full_keep)
    rows, branch = torch.randn(2, index.shape[0], 16)
    return {
        "x": x, "index": index, "offsets": offsets, "logits": logits,
        "shift": shift, "scale": scale, "gate": gate,
        "rows": rows, "hidden": rows, "branch": branch,
        "tokens": 9, "eps": 1e-5, "rescale": "residual", "score_scale": 2.0,
    }  # fmt: skip


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
@pytest.mark.parametrize("given", ["selecting", "selected", "two bins", "pinned", "logits"])
def test_route(given, wants_gradient, backend):
    case = CASES["per sample"]
    arguments = case.arguments() | {"backend": backend}
    arguments["index"] = selected(case)["index"] if given == "selected" else None
    arguments["keep_small"] = [2, 7] if given == "two bins" else None
    if given in ("pinned", "logits"):
        arguments |= {"pinned": torch.arange(18).view(2, 9) % 5 == 1, "score_scale": 2.0}
    if given == "logits":
        arguments |= {"logits": torch.randn(2, 9), "x": None, "router_weight": None, "router_bias": None}
    args, kwargs = check("route", arguments, wants_gradient, UTILITIES[:3])
    # The fourth of opcheck adds up the outputs in place and cannot start from an integer one: logits first.
    aot_autograd_check(
        lambda *args, **kwargs: torch.ops.diffratio.route(*args, **kwargs)[::-1],
        args,
        kwargs,
        dynamic=True,
        check_gradients="auto",
    )


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
@pytest.mark.parametrize("op", ["gather_adaln", "adaln", "scatter_rescale"])
def test_row_operators(op, wants_gradient, backend):
    arguments = selected(CASES["per sample"]) | {"backend": backend}
    check(op, arguments, wants_gradient, traced_once(backend))


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
@pytest.mark.parametrize("op", ["gather_adaln", "adaln", "gate_residual", "scatter_rescale"])
def test_row_operators_with_groups_and_norms(op, wants_gradient, backend):
    arguments = selected(CASES["per sample"]) | {"backend": backend}
    x = arguments["x"]
    arguments |= {"groups": torch.arange(x.shape[:2].numel()).view(x.shape[:2]) // 3, "norm": "rms"}
    arguments |= {name: torch.randn(6, 16) for name in ("shift", "scale", "gate")}
    arguments |= {"norm_weight": torch.randn(16), "norm_bias": torch.randn(16)}
    check(op, arguments, wants_gradient, traced_once(backend))


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
def test_gate_residual(wants_gradient, backend):
    check("gate_residual", selected(CASES["per sample"]) | {"backend": backend}, wants_gradient)


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_mlp(wants_gradient, backend):
    a = CASES["uniform"].arguments()
    weights = {name: a[name] for name in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")}
    rows = {"rows": torch.randn(10, 16), "backend": backend}
    check("mlp", rows | weights, wants_gradient)


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
@pytest.mark.parametrize("given", ["gate", "gate and value", "scored"])
def test_activation(given, wants_gradient, backend):
    a = selected(CASES["per sample"])
    arguments = {
        "gate": a["rows"],
        "value": None if given == "gate" else a["branch"],
        "index": a["index"] if given == "scored" else None,
        "logits": a["logits"].detach() if given == "scored" else None,
        "kind": "silu",
        "score_scale": 2.0,
        "backend": backend,
    }
    check("activation", arguments, wants_gradient, traced_once(backend))


@pytest.mark.parametrize("backend", ["triton", "sdpa", "reference"])
@pytest.mark.parametrize(("name", "few"), [("uniform", 1), ("per sample", 2)])
def test_attention(name, few, wants_gradient, backend):
    case, offsets = CASES[name], selected(CASES[name])["offsets"]
    arguments = {
        "query": torch.randn(sum(case.full_keep), 2, 8),
        "key": torch.randn(10, few, 8),
        "value": torch.randn(10, few, 8),
        "cu_seqlens_q": offsets,
        "cu_seqlens_k": torch.tensor([0, 5, 10], dtype=torch.int32),
        "max_seqlen_q": max(case.full_keep),
        "max_seqlen_k": 5,
        "key_lengths": torch.tensor([4, 0], dtype=torch.int32) if case.ragged_text else None,
        "backend": backend,
    }
    check("attention", arguments, wants_gradient, traced_once(backend))


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_mod_block(name, wants_gradient, backend):
    arguments = CASES[name].arguments() | {"backend": backend}
    check("mod_block", arguments, wants_gradient, traced_once(backend))


def traced_once(backend):
    """AOT autograd sees the same steps whatever computes them, and takes seconds."""
    return UTILITIES if backend in ("cpu", "sdpa") else UTILITIES[:3]


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
@pytest.mark.parametrize("op", ["two_bin_gelu", "two_bin_blend"])
def test_row_operators_of_two_bins(op, wants_gradient, backend):
    arguments = two_bin_arguments(TWO_BINS["per sample"])[op] | {"backend": backend}
    check(op, arguments, wants_gradient, traced_once(backend))


@pytest.mark.parametrize("backend", ["triton", "sdpa", "reference"])
def test_two_bin_attention(wants_gradient, backend):
    arguments = two_bin_arguments(TWO_BINS["per sample"])["two_bin_attention"]
    arguments |= {"backend": backend}
    check("two_bin_attention", arguments, wants_gradient, traced_once(backend))


BLOCKS = [*((name, "cpu") for name in TWO_BINS), ("per sample", "triton"), ("per sample", "reference")]


@pytest.mark.parametrize(("name", "backend"), BLOCKS)
def test_two_bin_block(name, backend, wants_gradient):
    arguments = TWO_BINS[name].arguments() | {"backend": backend}
    check(
        "two_bin_block", arguments, wants_gradient,
        traced_once(backend) if name == "per sample" else UTILITIES[:3],
    )  # fmt: skip
