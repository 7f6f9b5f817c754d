"""Rows that are not kept come back bit for bit, whatever they hold; scores of other tokens change nothing."""

from dataclasses import replace

import pytest
import torch

from diffratio_kernels._backends import kernels
from diffratio_kernels._triton.launch import row_map_of
from diffratio_kernels.types import Finish, Linear, PackedRows, Rescale
from tools.launchers.calls import typical_call
from tools.launchers.check import same_bits

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
    x, rows = a["x"], PackedRows(a["index"], a["tokens"])
    hidden = x.flatten(0, 1)[rows.index]
    untouched = torch.ones(x.shape[:2], dtype=torch.bool, device=device)
    untouched.flatten()[rows.index] = False
    x[untouched] = NAN
    rest = a["rows"], Linear(a["weight"], a["bias"]), a["gate"] if gated else None, rows
    before, join = x.clone(), kernels("fused_linear", "gate_residual").linear_gate_residual
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
def test_a_row_map_that_is_given_changes_nothing(kind, dtype, device):
    """Neither into a new tensor nor in place."""
    _, a = typical_call(f"{kind}, mlp", dtype, device)
    x, rows, how = a["x"], PackedRows(a["index"], a["x"].shape[1]), Rescale("mlp", a["score_scale"])
    if kind == "scatter_rescale":
        module, branch, rest = kernels(kind, "triton"), a["branch"], ()
    else:
        module, branch = kernels("fused_linear", "scatter"), a["inner"]
        rest = (Linear(a["weight"], a["bias"]),)
    call = Finish(x, rows, a["hidden"], branch, a["gate"], a["logits"], how)
    function, in_place = getattr(module, kind), getattr(module, f"{kind}_", None)
    expected = function(call, *rest)
    for row_map in (None, row_map_of(rows, x.shape[0] * x.shape[1])):
        given = replace(call, rows=replace(rows, row_map=row_map))
        assert same_bits(function(given, *rest), expected)
        if in_place is not None:
            copy = x.clone()
            in_place(replace(given, x=copy))
            assert same_bits(copy, expected)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the mean of such a row
def test_kept_rows_are_gathered_bit_equal(dtype, device):
    _, a = typical_call("gather_adaln", dtype, device)
    x, packed = odd_values(a["x"]), PackedRows(a["index"], a["x"].shape[1])
    rows, _ = kernels("adaln", "triton").gather_adaln(x, packed, a["shift"], a["scale"], 1e-6)
    assert same_bits(rows, x.flatten(0, 1)[a["index"]])
