"""Every derivative against finite differences in fp64: each operator, each differentiable argument.

The reverse mode; the forward mode is refused.
"""

import pytest
import torch
from torch.autograd import forward_ad, gradcheck

import diffratio_kernels as dk
from diffratio_kernels._checks import ACTIVATIONS
from diffratio_kernels.testing.cases import ModBlockCase, TwoBinCase, operator_calls, two_bin_arguments

KEEPS = {"uniform": (3, 3), "per sample": (1, 4), "a sample without": (0, 4)}
BINS = {  # kept by the small bin, by the large one
    "uniform": ((2, 2), (3, 3)),
    "per sample": ((0, 3), (1, 4)),
    "equal": ((3, 1), (3, 1)),
    "a sample without": ((0, 2), (0, 4)),
}
RESCALE = ("mlp", "residual", "output", "none")
ROWS = ("cpu", "reference")
SMALL = {"seed": 0, "tokens": 4, "heads": 1, "head_dim": 8, "hidden": 5, "dtype": torch.float64}


def check(function, arguments, fast=False):
    """gradcheck in every floating tensor of `arguments` at once; the others stay as they are."""
    names = [n for n, v in arguments.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    leaves = [arguments[name].detach().double().requires_grad_() for name in names]

    def of_leaves(*values):
        return function(**arguments | dict(zip(names, values, strict=True)))

    assert all(t.requires_grad for t in leaves)
    assert gradcheck(of_leaves, leaves, fast_mode=fast)
    return set(names)


@pytest.fixture(params=KEEPS)
def keep(request):
    return KEEPS[request.param]


def bins_of(name):
    return dict(zip(("keep_small", "keep"), BINS[name], strict=True))


@pytest.fixture(params=BINS)
def bins(request):
    return bins_of(request.param)


@pytest.fixture(params=ROWS)
def backend(request):
    return request.param


def packed(keep):
    """index, and two sets of packed rows [T, 8]."""
    index = torch.cat([torch.randperm(4)[:k].sort().values + 4 * b for b, k in enumerate(keep)])
    return index, *torch.randn(2, len(index), 8)


def test_route(keep, backend):
    a = ModBlockCase(keep=keep, router_bias=True, **SMALL).arguments()
    arguments = {name: a[name] for name in ("x", "router_weight", "keep", "router_bias")}
    names = check(lambda **k: dk.route(**k, backend=backend)[2], arguments)
    assert names == {"x", "router_weight", "router_bias"}


@pytest.mark.parametrize("given", ["x", "logits"])
def test_route_with_pinned_tokens(given, backend):
    a = ModBlockCase(keep=(3, 4), **SMALL).arguments()
    arguments = {name: a[name] for name in ("x", "router_weight", "keep")}
    if given == "logits":
        arguments |= {"x": None, "router_weight": None, "logits": torch.randn(2, 4)}
    pinned = torch.tensor([[True, False, False, True], [False, False, True, False]])
    arguments |= {"pinned": pinned, "score_scale": 2.0}
    names = check(lambda **k: dk.route(**k, backend=backend)[2], arguments)
    assert names == ({"logits"} if given == "logits" else {"x", "router_weight"})


def test_gather_adaln(keep, backend):
    x, (shift, scale) = torch.randn(2, 4, 8), torch.randn(2, 2, 8)
    arguments = {"x": x, "index": packed(keep)[0], "shift": shift, "scale": scale, "eps": 0.1}
    names = check(lambda **k: dk.gather_adaln(**k, backend=backend), arguments)
    assert names == {"x", "shift", "scale"}


@pytest.mark.parametrize("output", [0, 1], ids=["rows", "normed"])
def test_gather_adaln_when_one_output_is_used(output, backend):
    x, (shift, scale) = torch.randn(2, 4, 8), torch.randn(2, 2, 8)
    arguments = {"x": x, "index": packed((1, 4))[0], "shift": shift, "scale": scale, "eps": 0.1}
    check(lambda **k: dk.gather_adaln(**k, backend=backend)[output], arguments)


def test_adaln(keep, backend):
    index, rows, _ = packed(keep)
    shift, scale = torch.randn(2, 2, 8)
    arguments = {"rows": rows, "index": index, "tokens": 4, "shift": shift, "scale": scale, "eps": 0.1}
    names = check(lambda **k: dk.adaln(**k, backend=backend), arguments)
    assert names == {"rows", "shift", "scale"}


@pytest.mark.parametrize("rescale", RESCALE)
def test_scatter_rescale(keep, rescale, backend):
    index, hidden, branch = packed(keep)
    arguments = {"x": torch.randn(2, 4, 8), "index": index, "hidden": hidden, "branch": branch}
    arguments |= {
        "gate": torch.randn(2, 8),
        "logits": torch.randn(2, 4),
        "rescale": rescale,
        "score_scale": 2.0,
    }
    names = check(lambda **k: dk.scatter_rescale(**k, backend=backend), arguments)
    assert names == {"x", "hidden", "branch", "gate", "logits"}


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True], ids=["alone", "gated"])
def test_activation(keep, kind, gated, backend):
    index, gate, value = packed(keep)
    arguments = {"gate": gate, "value": value if gated else None, "index": index, "score_scale": 2.0}
    arguments |= {"logits": torch.randn(2, 4), "kind": kind}
    names = check(lambda **k: dk.activation(**k, backend=backend), arguments)
    assert names == {"gate", "logits"} | ({"value"} if gated else set())


@pytest.mark.parametrize(("lengths", "few"), [(None, 2), (None, 1), ([3, 0], 2), ([3, 1], 1)], ids=str)
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_attention(keep, lengths, few, backend):
    offsets = torch.tensor([0, keep[0], sum(keep)], dtype=torch.int32)
    arguments = {
        "query": torch.randn(sum(keep), 2, 8),
        "key": torch.randn(6, few, 8),
        "value": torch.randn(6, few, 8),
        "cu_seqlens_q": offsets,
        "cu_seqlens_k": torch.tensor([0, 3, 6], dtype=torch.int32),
        "max_seqlen_q": max(keep),
        "max_seqlen_k": 3,
        "key_lengths": None if lengths is None else torch.tensor(lengths, dtype=torch.int32),
        "scale": 0.5,
    }
    names = check(lambda **k: dk.attention(**k, backend=backend), arguments)
    assert names == {"query", "key", "value"}


@pytest.mark.parametrize("text", ["text", "ragged text", "no text"])
@pytest.mark.parametrize("rescale", RESCALE)
def test_mod_block(keep, rescale, text, backend):
    """All 17 differentiable arguments; the selection is given, since moving a logit may change it."""
    case = ModBlockCase(
        keep=keep, rescale=rescale, text=None if text == "no text" else 3, router_bias=True, **SMALL
    )
    arguments = case.arguments() | {"backend": backend, "index": packed(keep)[0], "eps": 0.1}
    if text == "ragged text":
        arguments["context_lengths"] = torch.tensor([2, 0], dtype=torch.int32)
    names = check(dk.mod_block, arguments, fast=True)
    assert len(names) == (12 if text == "no text" else 17)


def two_bins(op, bins, **options):
    return two_bin_arguments(TwoBinCase(**SMALL | {"router_bias": True} | bins | options))[op]


def test_two_bin_gelu(bins, backend):
    arguments = two_bins("two_bin_gelu", bins) | {"backend": backend}
    assert check(dk.two_bin_gelu, arguments, fast=True) == {"pre", "weight_large"}


BLENDS = [("cpu", rescale, bins) for rescale in RESCALE for bins in BINS]
BLENDS += [("reference", rescale, "per sample") for rescale in RESCALE]


@pytest.mark.parametrize(("backend", "rescale", "bins"), BLENDS)
def test_two_bin_blend(backend, rescale, bins):
    arguments = two_bins("two_bin_blend", bins_of(bins), rescale=rescale, score_scale=2.0)
    names = check(dk.two_bin_blend, arguments | {"backend": backend}, fast=True)
    assert names == {"x", "hidden", "branch", "gate", "logits", "weight_large"}


@pytest.mark.parametrize(("backend", "dtype"), [("cpu", torch.float64), ("triton", torch.float32)])
def test_a_second_derivative_is_an_error_and_not_a_part_of_one(backend, dtype):
    """Also where the incoming gradient is a constant, as that of a sum."""
    calls = operator_calls(backend, dtype, "cpu", case=ModBlockCase(keep=(3, 3), **SMALL))
    differentiable = {op: call for op, call in calls.items() if call.differentiable}
    assert len(differentiable) >= 7
    for call in differentiable.values():
        floats = {
            n: t for n, t in call.arguments.items() if isinstance(t, torch.Tensor) and t.is_floating_point()
        }
        leaves = {name: t.detach().requires_grad_() for name, t in floats.items()}
        result = call.function(**call.arguments | leaves)
        outs = result if isinstance(result, tuple) else (result,)
        total = sum(out.sum() for out in outs if out.is_floating_point())
        grads = torch.autograd.grad(total, list(leaves.values()), create_graph=True, allow_unused=True)
        with pytest.raises(NotImplementedError, match="only first derivatives are implemented"):
            sum(g.square().sum() for g in grads if g is not None).backward()


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_two_bin_attention(bins, backend, heads):
    arguments = two_bins("two_bin_attention", bins) | {"scale": 0.5, "backend": backend}
    arguments["query"] = arguments["query"].repeat(1, heads, 1)
    assert check(dk.two_bin_attention, arguments, fast=True) == {"query", "key", "value"}


def check_two_bin_block(bins, backend, **options):
    """All differentiable arguments; the selection is given, since moving a logit may change it."""
    arguments = two_bins("two_bin_block", bins, **options)
    index = two_bins("two_bin_blend", bins, **options)["index"]
    names = check(dk.two_bin_block, arguments | {"backend": backend, "index": index}, fast=True)
    assert len(names) == (13 if options.get("text", 3) is None else 18)


RAGGED = {"text": 3, "ragged_text": True}


@pytest.mark.parametrize("rescale", RESCALE)
def test_two_bin_block(rescale):
    check_two_bin_block(bins_of("per sample"), "cpu", rescale=rescale, **RAGGED)


def test_two_bin_block_of_the_reference_steps():
    check_two_bin_block(bins_of("per sample"), "reference", **RAGGED)


def test_two_bin_block_without_text_of_any_bins(bins):
    check_two_bin_block(bins, "cpu", weight_large=(0.3, 1.4), text=None)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 0.0), (0.0, 1.0)], ids=str)
def test_two_bin_block_of_which_one_bin_has_no_weight(weights):
    check_two_bin_block(bins_of("per sample"), "cpu", weight_large=weights, **RAGGED)


def test_forward_mode_is_refused_instead_of_losing_the_tangent():
    given = ModBlockCase(seed=0, keep=(4,)).arguments()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="mod_block"):
        dk.mod_block(**given | {"x": forward_ad.make_dual(given["x"], torch.ones_like(given["x"]))})
    two_bins = two_bin_arguments(TwoBinCase(seed=0))
    for op, name in (("two_bin_block", "weight_large"), ("two_bin_blend", "x"), ("two_bin_gelu", "pre")):
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=op):
            dual = forward_ad.make_dual(two_bins[op][name], torch.ones_like(two_bins[op][name]))
            getattr(dk, op)(**two_bins[op] | {name: dual})


def test_torch_func_is_refused_by_kernels_and_served_by_the_reference():
    arguments = ModBlockCase(seed=0, keep=(4,)).arguments()

    def loss(x, backend):
        return dk.mod_block(**arguments | {"x": x}, backend=backend).sum()

    x = arguments["x"].detach().requires_grad_()
    (expected,) = torch.autograd.grad(loss(x, "reference"), x)
    torch.testing.assert_close(torch.func.grad(loss)(x.detach(), "reference"), expected)
    with pytest.raises(NotImplementedError, match=r"route: torch.func has no gradients of backend 'cpu'"):
        torch.func.grad(loss)(x.detach(), "cpu")
