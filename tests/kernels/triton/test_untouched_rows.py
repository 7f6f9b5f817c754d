"""Rows that are not kept come back bit for bit, whatever they hold; scores of other tokens change nothing."""

import pytest
import torch

from diffratio_kernels.kernels.triton import launcher
from diffratio_kernels.testing.triton_calls import typical_call
from diffratio_kernels.testing.triton_check import same_bits

NAN, INF = float("nan"), float("inf")
RESCALE = ("mlp", "residual", "output", "none")


def odd_values(like):
    """NaN, -NaN, infinities, zeros of both signs, the smallest and the largest number of a dtype."""
    limits = torch.finfo(like.dtype)
    values = [NAN, -NAN, INF, -INF, -0.0, 0.0, limits.smallest_normal / 2, limits.max]
    return (
        torch.tensor(values).to(like).repeat(-(-like.numel() // len(values)))[: like.numel()].view(like.shape)
    )


@pytest.fixture(params=RESCALE)
def call(request, dtype, device):
    """Arguments of scatter_rescale with odd values in all rows that are not kept, and which those are."""
    operator, arguments = typical_call(f"scatter_rescale, {request.param}", dtype, device)
    x, grad = arguments["x"].flatten(0, 1), arguments["grad_out"].flatten(0, 1)
    untouched = torch.ones(x.shape[0], dtype=torch.bool, device=device)
    untouched[arguments["index"]] = False
    x[untouched], grad[untouched] = odd_values(x[untouched]), odd_values(grad[untouched]).flip(0)
    return operator, arguments, untouched


def test_rows_that_are_not_kept_come_back_bit_equal(call):
    operator, arguments, untouched = call
    results = operator.kernels(**arguments)
    for key, source in (("out", "x"), ("out in place", "x"), ("d x", "grad_out")):
        rows, expected = results[key].flatten(0, 1), arguments[source].flatten(0, 1)
        assert same_bits(rows[untouched], expected[untouched]), key
        assert rows[~untouched].isfinite().all(), key
    for key in ("d hidden", "d branch", "d gate"):
        assert results[key].isfinite().all(), key


@pytest.mark.parametrize("rescale", RESCALE)
def test_a_product_leaves_rows_that_are_not_kept_alone(rescale, dtype, device):
    """Whatever they and their scores hold."""
    operator, arguments = typical_call("linear_scatter, mlp", dtype, device)
    arguments["rescale"] = rescale
    before = operator.kernels(**arguments)
    x = arguments["x"].flatten(0, 1)
    untouched = torch.ones(x.shape[0], dtype=torch.bool, device=device)
    untouched[arguments["index"]] = False
    x[untouched] = odd_values(x[untouched])
    arguments["logits"].flatten()[untouched] = NAN
    for key, result in operator.kernels(**arguments).items():
        rows = result.flatten(0, 1)
        assert same_bits(rows[untouched], x[untouched]), key
        assert same_bits(rows[~untouched], before[key].flatten(0, 1)[~untouched]), key


@pytest.mark.parametrize("gated", [True, False])
def test_a_product_that_takes_its_residual_rows_from_x_reads_no_others(gated, dtype, device):
    """And has the bits of one that is given those rows."""
    _, a = typical_call("linear_gate_residual", dtype, device)
    x, index, tokens = a["x"], a["index"], a["tokens"]
    hidden = x.flatten(0, 1)[index]
    untouched = torch.ones(x.shape[:2], dtype=torch.bool, device=device)
    untouched.flatten()[index] = False
    x[untouched] = NAN
    rest = a["rows"], a["weight"], a["bias"], a["gate"] if gated else None, index, tokens
    before, join = x.clone(), launcher("linear_gate_residual")
    assert same_bits(join(x, *rest), join(hidden, *rest)) and same_bits(x, before)
    with pytest.raises(ValueError, match="packed"):
        join(x, *rest, in_place=True)


@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
def test_scores_of_tokens_that_are_not_kept_change_nothing(value, call):
    operator, arguments, untouched = call
    expected = operator.kernels(**arguments)
    changed = torch.where(untouched.view(arguments["logits"].shape), value, arguments["logits"])
    for key, result in operator.kernels(**arguments | {"logits": changed}).items():
        assert same_bits(result, expected[key]), key
    assert expected["d logits"].flatten()[untouched].eq(0).all()


@pytest.mark.parametrize("kind", ["scatter_rescale, none", "linear_scatter, mlp", "two_bin_blend, residual"])
def test_a_score_that_scales_nothing_may_be_nan(kind, dtype, device):
    operator, arguments = typical_call(kind, dtype, device)
    arguments["rescale"] = "none"
    expected = operator.kernels(**arguments)
    changed = torch.full_like(arguments["logits"], NAN)
    for key, result in operator.kernels(**arguments | {"logits": changed}).items():
        assert same_bits(result, expected[key]), key


@pytest.mark.parametrize("kind", ["scatter_rescale", "linear_scatter"])
def test_places_change_nothing_in_place(kind, dtype, device):
    _, arguments = typical_call(f"{kind}, mlp", dtype, device)
    for other in ("grad_out", "next_weight", "next_bias"):
        arguments.pop(other, None)
    expected = launcher(kind)(**arguments)
    x = arguments["x"]
    place = launcher("row_places")(arguments["index"], x.shape[0] * x.shape[1])
    for given in (None, place):
        out = launcher(kind)(**arguments | {"x": x.clone(), "place": given}, in_place=True)
        assert same_bits(out, expected)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the mean of such a row
def test_kept_rows_are_gathered_bit_equal(dtype, device):
    _, arguments = typical_call("gather_adaln", dtype, device)
    x = odd_values(arguments["x"])
    call = arguments["index"], arguments["shift"], arguments["scale"], 1e-6
    rows, _ = launcher("gather_adaln")(x, *call)
    assert same_bits(rows, x.flatten(0, 1)[arguments["index"]])
