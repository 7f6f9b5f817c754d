"""The CUDA C++ row kernels in the simulator: the reference's results, the same bits in any surroundings."""

import os

import pytest
import torch

from diffratio_kernels import reference
from diffratio_kernels.ops.adaln import cuda as adaln
from diffratio_kernels.ops.cuda import row_map_of
from diffratio_kernels.ops.gate_residual import cuda as gate_residual
from diffratio_kernels.ops.route import cuda as route
from diffratio_kernels.ops.scatter_rescale import cuda as scatter
from diffratio_kernels.testing.budget import check_budget, longest_sum, shake
from diffratio_kernels.testing.cases import LAYOUTS, cast, laid_out
from diffratio_kernels.types import Finish, PackedRows, Rescale
from tests.sim.ids import case_id, short
from tools.guards.poison import poisoned_memory
from tools.launchers.check import assert_same_bits, bits

pytestmark = pytest.mark.usefixtures("simulated")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RESCALE = ("mlp", "residual", "output", "none")
SHAPES = [  # B, N, kept, D
    (0, 5, [], 24),
    (2, 0, [0, 0], 24),
    (1, 1, [1], 1),
    (2, 5, [3, 0], 1),
    (3, 9, [9, 4, 1], 7),
    (2, 40, [17, 23], 8),
    (1, 33, [0], 72),
    (4, 17, [5, 17, 0, 8], 72),
    (2, 600, [301, 40], 24),  # three slices of the column sums
    (2, 19, [11, 19], 1152),
    (1, 3, [2], 1288),  # several warps a row in every dtype
    (1, 3, [2], 10248),  # more than a block holds in registers
]
EXACT = ("rows",)
CASES = [
    (shape, rescale, dtype)
    for i, shape in enumerate(SHAPES)
    for j, dtype in enumerate(DTYPES)
    for rescale in (RESCALE if shape[3] == 72 else [RESCALE[(i + j) % 4]])
]


def draw(shape, dtype):
    """x and everything the row kernels take with it, by name; modulation in fp32, its rows apart."""
    batch, tokens, keep, width = shape
    x, logits = torch.randn(batch, tokens, width).to(dtype), torch.randn(batch, tokens)
    modulation = torch.randn(batch, 3, width)
    return {
        "x": x,
        "index": reference.select_tokens(logits, keep)[0],
        "shift": modulation[:, 0],
        "scale": modulation[:, 1],
        "gate": modulation[:, 2],
        "hidden": torch.randn(sum(keep), width).to(dtype),
        "branch": torch.randn(sum(keep), width).to(dtype),
        "logits": logits,
        "weight": (torch.randn(width) * width**-0.5).to(dtype),
        "bias": torch.randn(1).to(dtype),
    }


def run_all(a, rescale="mlp", eps=1e-6):
    """Every row kernel once, forward and backward: name -> tensor."""
    x, packed = a["x"], PackedRows(a["index"], a["x"].shape[1])
    rows, normed = adaln.gather_adaln(x, packed, a["shift"], a["scale"], eps)
    no_rows, normed_only = adaln.gather_adaln(x, packed, a["shift"], a["scale"], eps, keep_rows=False)
    assert no_rows is None
    finish = Finish(x, packed, a["hidden"], a["branch"], a["gate"], a["logits"], Rescale(rescale, 2.0))
    backward = adaln.adaln_backward(
        rows, packed, a["scale"], eps, a["branch"], a["hidden"], x[..., 0].numel()
    )
    packed_backward = adaln.adaln_backward(a["hidden"], packed, a["scale"], eps, None, a["branch"], None)
    routed_backward = route.router_logits_backward(a["logits"], x, a["weight"])
    scattered = scatter.scatter_rescale_backward(x.flip(-1), finish)[:5]
    gated_backward = gate_residual.gate_residual_backward(a["hidden"], a["branch"], a["gate"], packed)[:2]
    return {
        "router_logits": route.router_logits(x, a["weight"], a["bias"]),
        "rows": rows,
        "normed": normed,
        "normed only": normed_only,
        "packed": adaln.adaln(a["hidden"], packed, a["shift"], a["scale"], eps),
        "gated": gate_residual.gate_residual(a["hidden"], a["branch"], a["gate"], packed),
        "out": scatter.scatter_rescale(finish),
        "d x": backward[0].view(x.shape),
        **dict(zip(("d shift", "d scale"), backward[1:], strict=True)),
        **dict(zip(("d rows", "d packed shift", "d packed scale"), packed_backward, strict=True)),
        **dict(zip(("d x routed", "d weight"), routed_backward, strict=True)),
        **dict(zip(("d gated branch", "d gated gate"), gated_backward, strict=True)),
        **dict(zip(("d x out", "d hidden", "d branch", "d gate", "d logits"), scattered, strict=True)),
    }


def reference_all(a, rescale="mlp", eps=1e-6):
    """The same by the reference and autograd, in the dtypes of the arguments."""
    a = {name: t.clone().requires_grad_() if t.is_floating_point() else t for name, t in a.items()}
    x, of_index = a["x"], PackedRows(a["index"], a["x"].shape[1])
    rows, normed = reference.gather_adaln(x, of_index, a["shift"], a["scale"], eps)
    packed = reference.adaln(a["hidden"], of_index, a["shift"], a["scale"], eps)
    routed = reference.router_logits(x, a["weight"], a["bias"])
    gated = reference.gate_residual(a["hidden"], a["branch"], a["gate"], of_index)
    finish = a["hidden"], a["branch"], a["gate"], a["logits"], Rescale(rescale, 2.0)
    out = reference.scatter_rescale(Finish(x, of_index, *finish))

    def gradients(outputs, inputs, incoming):
        leaves = [a[name] for name in inputs]
        return torch.autograd.grad(outputs, leaves, [g.detach() for g in incoming], materialize_grads=True)

    backward = gradients([rows, normed], ["x", "shift", "scale"], [a["branch"], a["hidden"]])
    packed_backward = gradients([packed], ["hidden", "shift", "scale"], [a["branch"]])
    routed_backward = gradients([routed], ["x", "weight"], [a["logits"]])
    gated_backward = gradients([gated], ["branch", "gate"], [a["hidden"]])
    scattered = gradients([out], ["x", "hidden", "branch", "gate", "logits"], [x.flip(-1)])
    results = {
        "router_logits": routed,
        "rows": rows,
        "normed": normed,
        "normed only": normed,
        "packed": packed,
        "gated": gated,
        "out": out,
        **dict(zip(("d x", "d shift", "d scale"), backward, strict=True)),
        **dict(zip(("d rows", "d packed shift", "d packed scale"), packed_backward, strict=True)),
        **dict(zip(("d x routed", "d weight"), routed_backward, strict=True)),
        **dict(zip(("d gated branch", "d gated gate"), gated_backward, strict=True)),
        **dict(zip(("d x out", "d hidden", "d branch", "d gate", "d logits"), scattered, strict=True)),
    }
    return {name: t.detach() for name, t in results.items()}


def assert_close(actual, expected):
    """As near as another order in fp32, of up to 129 terms, and one rounding leave results."""
    for name, t in expected.items():
        limit = (129 * torch.finfo(torch.float32).eps + torch.finfo(t.dtype).eps) * t.abs().max().clamp(min=1)
        assert (actual[name].float() - t.float()).abs().max() <= limit, name


@pytest.mark.parametrize(("shape", "rescale", "dtype"), CASES, ids=case_id)
def test_within_the_error_budget(shape, rescale, dtype):
    arguments = draw(shape, dtype)
    actual, peer = run_all(arguments, rescale), reference_all(arguments, rescale)
    gold = reference_all(cast(arguments, torch.float64), rescale)
    shaken = {
        each: [reference_all(shake(arguments, each, seed), rescale) for seed in range(2)]
        for each in {dtype, torch.float32}
    }
    for name, result in actual.items():
        if name in EXACT:
            assert torch.equal(bits(result), bits(peer[name])), name
        else:
            check_budget(
                f"simulated CUDA {short(dtype)}: {name}",
                result.to(peer[name].dtype),
                peer[name],
                gold[name],
                shaken=[other[name] for other in shaken[peer[name].dtype]] if name.startswith("d ") else (),
                terms=longest_sum(arguments),
            )


@pytest.mark.parametrize(("shape", "rescale", "dtype"), CASES, ids=case_id)
def test_same_bits_under_every_schedule_in_poisoned_memory(simulator, shape, rescale, dtype):
    arguments = draw(shape, dtype)
    expected = run_all(arguments, rescale)
    try:
        with poisoned_memory():
            for seed in range(4):
                simulator.seed(seed)
                assert_same_bits(run_all(arguments, rescale), expected)
    finally:
        simulator.seed(0)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "contiguous"])
@pytest.mark.parametrize("shape", [(3, 9, [9, 4, 1], 24), (2, 5, [3, 4], 1152)], ids=str)
def test_same_bits_in_every_layout(shape, layout, dtype):
    """ "offset" is misaligned and contiguous, so that the kernels read it element by element.

    That is other code, in which nvcc may fuse other products and sums.
    """
    arguments = draw(shape, dtype)
    index = arguments.pop("index")
    given = {name: laid_out(t, layout) for name, t in arguments.items()}
    packed = {name: t.clone(memory_format=torch.contiguous_format) for name, t in given.items()}
    actual, expected = (run_all(each | {"index": index}) for each in (given, packed))
    if layout == "offset" and "DIFFRATIO_PTX" in os.environ:
        assert_close(actual, expected)
    else:
        assert_same_bits(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_gathered_and_untouched_rows_are_exact_copies(dtype):
    """Also rows of NaN, infinity and -0, bit for bit."""
    arguments = draw((3, 20, [7, 20, 0], 72), dtype)
    arguments["x"][:, ::5] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0] * 18).to(dtype)
    flat, index = bits(arguments["x"]).flatten(0, 1), arguments["index"]
    results = run_all(arguments)
    assert torch.equal(bits(results["rows"]), flat[index])
    untouched = torch.ones(60, dtype=torch.bool).index_fill(0, index, False)
    assert torch.equal(bits(results["out"]).flatten(0, 1)[untouched], flat[untouched])
    incoming = bits(arguments["x"].flip(-1)).flatten(0, 1)
    assert torch.equal(bits(results["d x out"]).flatten(0, 1)[untouched], incoming[untouched])


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("rescale", RESCALE)
@pytest.mark.parametrize("layout", ["contiguous", "offset"])
def test_in_place_is_the_same_with_x_as_the_output(layout, rescale, dtype):
    a = draw((3, 20, [7, 20, 0], 72), dtype)
    rest = a["hidden"], a["branch"], a["gate"], a["logits"], Rescale(rescale, 2.0)
    expected = scatter.scatter_rescale(Finish(a["x"], PackedRows(a["index"], 20), *rest))
    for row_map in (None, row_map_of(PackedRows(a["index"], 1), 3 * 20)):
        x, rows = laid_out(a["x"].clone(), layout), PackedRows(a["index"], 20, row_map=row_map)
        assert torch.equal(bits(scatter.scatter_rescale(Finish(x, rows, *rest))), bits(expected))
        scatter.scatter_rescale_(Finish(x, rows, *rest))
        assert torch.equal(bits(x), bits(expected))
    with pytest.raises(ValueError, match="contiguous"):
        scatter.scatter_rescale_(Finish(a["x"].transpose(0, 1), rows, *rest))


@pytest.mark.parametrize("rescale", RESCALE)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_scores_of_tokens_that_are_not_kept_change_nothing(value, rescale):
    arguments = draw((2, 20, [7, 11], 24), torch.float32)
    expected = run_all(arguments, rescale)
    untouched = torch.ones(40, dtype=torch.bool).index_fill(0, arguments["index"], False).view(2, 20)
    arguments["logits"][untouched] = value
    actual = run_all(arguments, rescale)
    for routed in ("d x routed", "d weight"):  # there the logits are the incoming gradient of all rows
        del actual[routed], expected[routed]
    assert_same_bits(actual, expected)
    assert actual["d logits"][untouched].eq(0).all()


@pytest.mark.parametrize("rescale", RESCALE)
def test_a_sample_is_independent_of_its_neighbours(rescale):
    keep = [9, 0, 21, 4]
    arguments = draw((4, 21, keep, 72), torch.float32)
    together, first = run_all(arguments, rescale), 0
    for b, kept in enumerate(keep):
        rows = slice(first, first + kept)
        shared = {name: arguments[name] for name in ("weight", "bias")}
        alone = {name: t[b : b + 1] for name, t in arguments.items() if name not in ("index", *shared)}
        alone |= shared | {name: arguments[name][rows] for name in ("hidden", "branch")}
        results = run_all(alone | {"index": arguments["index"][rows] - 21 * b}, rescale)
        del results["d weight"]
        for name, result in results.items():
            packed = together[name].shape[0] == sum(keep)
            of_sample = together[name][rows] if packed else together[name].view(4, -1)[b].view(result.shape)
            assert torch.equal(bits(result), bits(of_sample)), (b, name)
        first += kept


def test_rows_may_come_in_any_order():
    """The operators ask for every row once, not for an order: here samples and tokens are mixed."""
    arguments = draw((3, 9, [9, 4, 1], 24), torch.float32)
    expected = run_all(arguments)
    order = torch.randperm(14)
    mixed = arguments | {name: arguments[name][order] for name in ("index", "hidden", "branch")}
    for name, result in run_all(mixed).items():
        packed = expected[name].shape[0] == 14
        assert torch.equal(bits(result), bits(expected[name][order] if packed else expected[name])), name


def test_the_row_map_is_the_inverse_of_the_index():
    assert row_map_of(PackedRows(torch.tensor([3, 0, 5]), 1), 7).tolist() == [1, -1, -1, 0, -1, 2, -1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32], ids=short)
def test_other_element_types_are_an_error(dtype):
    with pytest.raises(ValueError, match="float, bfloat16 or half"):
        route.router_logits(torch.zeros(1, 2, 8, dtype=dtype), torch.zeros(8), None)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_many_rows(dtype):
    """Where one warp scores several rows at once: the same bits as row by row."""
    x, weight = torch.randn(1, 8195, 16).to(dtype), torch.randn(16)
    logits = route.router_logits(x, weight, None)
    assert torch.equal(logits[0, -5:], route.router_logits(x[:, -5:], weight, None)[0])
    assert torch.equal(logits[0, :999], route.router_logits(x[:, :999], weight, None)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_statistics_of_rows_far_from_zero(dtype):
    """A variance as E[x^2] - mean^2 has no digits left there."""
    x = (torch.randn(1, 8, 72) + (300 if dtype == torch.float32 else 30)).to(dtype)
    rows, (shift, scale) = PackedRows(torch.arange(8), 8), torch.randn(2, 1, 72)
    _, normed = adaln.gather_adaln(x, rows, shift, scale, 1e-6)
    _, peer = reference.gather_adaln(x, rows, shift, scale, 1e-6)
    _, gold = reference.gather_adaln(x.double(), rows, shift.double(), scale.double(), 1e-6)
    check_budget(f"simulated gather_adaln {short(dtype)}: rows far from zero", normed, peer, gold, terms=72)
