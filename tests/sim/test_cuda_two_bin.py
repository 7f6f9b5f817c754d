"""The CUDA C++ kernels of two bins in the simulator: the reference's results, the same bits everywhere."""

import pytest
import torch

from diffratio_kernels import reference
from diffratio_kernels.ops.route import cuda as route
from diffratio_kernels.ops.scatter_rescale import cuda as scatter
from diffratio_kernels.ops.two_bin_blend import cuda as two_bin_blend
from diffratio_kernels.ops.two_bin_gelu import cuda as two_bin_gelu
from diffratio_kernels.ops.two_bin_gelu.reference import blend
from diffratio_kernels.reference import cu_seqlens_of
from diffratio_kernels.testing.budget import check_budget, longest_sum, shake
from diffratio_kernels.testing.cases import LAYOUTS, cast, laid_out
from diffratio_kernels.types import Bins, Finish, PackedRows, Rescale
from tests.sim.ids import case_id, short
from tools.guards.poison import poisoned_memory
from tools.launchers.check import assert_same_bits, bits

pytestmark = pytest.mark.usefixtures("simulated")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RESCALE = ("mlp", "residual", "output", "none")
SHAPES = [  # B, N, kept by the large bin, by the small bin, D
    (0, 5, [], [], 24),
    (2, 0, [0, 0], [0, 0], 24),
    (1, 1, [1], [1], 1),
    (2, 5, [3, 0], [0, 0], 1),
    (5, 9, [9, 4, 0, 1, 5], [9, 2, 0, 0, 3], 7),
    (2, 40, [17, 23], [17, 23], 12),  # whole vectors in fp32, not in 16 bits
    (1, 33, [0], [0], 72),
    (4, 17, [5, 17, 0, 8], [4, 0, 0, 8], 72),
    (2, 600, [301, 40], [200, 40], 24),  # three slices of the column sums
    (2, 9, [5, 9], [4, 0], 1152),
    (2, 5, [5, 4], [3, 4], 1288),  # several warps a row in every dtype
    (1, 5, [4], [2], 10248),  # more than one round of a block's threads
]
CASES = [
    (shape, rescale, dtype)
    for i, shape in enumerate(SHAPES)
    for j, dtype in enumerate(DTYPES)
    for rescale in (RESCALE if shape[4] in (7, 72) else [RESCALE[(i + j) % 4]])
]
WEIGHTS = torch.tensor([0.3, -0.6, 1.0, 1.7, 0.0])
GRADIENTS = ("x", "hidden", "branch", "gate", "logits")


def draw(shape, dtype):
    """Everything that the kernels take, by name: pre is as wide as hidden, gate a row of a larger tensor."""
    batch, tokens, large, small, width = shape
    x, logits = torch.randn(batch, tokens, width).to(dtype), torch.randn(batch, tokens)
    kept, both = sum(large), sum(large) + sum(small)
    return {
        "x": x,
        "index": reference.select_tokens(logits, large, small)[0],
        "hidden": torch.randn(both, width).to(dtype),
        "branch": torch.randn(kept, width).to(dtype),
        "gate": torch.randn(batch, 3, width)[:, 2],
        "logits": logits,
        "weight_large": WEIGHTS[:batch].clone(),
        "cu_seqlens_large": cu_seqlens_of(large, x.device),
        "cu_seqlens_small": cu_seqlens_of(small, x.device),
        "pre": (3 * torch.randn(both, width)).to(dtype),
    }


def blend_arguments(a, rescale):
    rows = PackedRows(a["index"], a["x"].shape[1], bins=bins_of(a))
    return Finish(a["x"], rows, a["hidden"], a["branch"], a["gate"], a["logits"], Rescale(rescale, 2.0))


def bins_of(a):
    rows, both = a["branch"].shape[0], a["pre"].shape[0]
    return Bins(a["weight_large"], a["cu_seqlens_large"], a["cu_seqlens_small"], rows, both - rows)


def run_all(a, rescale="mlp"):
    """The four kernels: name -> tensor."""
    gradients = two_bin_blend.two_bin_blend_backward(a["x"].flip(-1), blend_arguments(a, rescale))
    of_pre, of_weight = two_bin_gelu.two_bin_gelu_backward(a["branch"], a["pre"], bins_of(a))
    return {
        "inner": two_bin_gelu.two_bin_gelu(a["pre"], bins_of(a)),
        "d pre": of_pre,
        "d weight by gelu": of_weight,
        "out": two_bin_blend.two_bin_blend(blend_arguments(a, rescale)),
        **{f"d {name}": t for name, t in zip((*GRADIENTS, "weight"), gradients, strict=True)},
    }


def reference_all(a, rescale="mlp"):
    """The same by the reference and autograd, in the dtypes of the arguments."""
    a = {name: t.clone().requires_grad_() if t.is_floating_point() else t for name, t in a.items()}
    inner = reference.two_bin_gelu(a["pre"], bins_of(a))
    out = reference.two_bin_blend(blend_arguments(a, rescale))
    rows = by_row(a)
    gelu_rows = reference.two_bin_gelu(a["pre"], bins_of(rows))
    out_rows = reference.two_bin_blend(blend_arguments(rows, rescale))
    incoming = a["x"].detach().flip(-1)
    incoming_rows = incoming.flatten(0, 1)[a["index"]][:, None]

    def gradients(output, inputs, grad):
        return torch.autograd.grad(output, inputs, grad.detach(), materialize_grads=True)

    results = {
        "inner": inner,
        "out": out,
        "d pre": gradients(inner, [a["pre"]], a["branch"])[0],
        "d weight by gelu": gradients(gelu_rows, [rows["weight_large"]], a["branch"])[0],
        "d weight": gradients(out_rows, [rows["weight_large"]], incoming_rows)[0],
    }
    for name, grad in zip(GRADIENTS, gradients(out, [a[name] for name in GRADIENTS], incoming), strict=True):
        results[f"d {name}"] = grad
    return {name: t.detach() for name, t in results.items()}


def by_row(a):
    """Each packed row as a sample of one token with a weight of its own: what a row gives to the gradient."""
    large, small = a["cu_seqlens_large"].diff(), a["cu_seqlens_small"].diff()
    sample = torch.arange(len(large)).repeat_interleave(large)
    in_small = [r < s for k, s in zip(large.tolist(), small.tolist(), strict=True) for r in range(k)]
    rows = a["x"].shape[2]
    return a | {
        "x": a["x"].reshape(-1, rows)[a["index"]][:, None],
        "index": torch.arange(len(sample)),
        "gate": a["gate"][sample],
        "logits": a["logits"].reshape(-1)[a["index"]][:, None],
        "weight_large": a["weight_large"].detach()[sample].requires_grad_(),
        "cu_seqlens_large": cu_seqlens_of([1] * len(sample), a["x"].device),
        "cu_seqlens_small": cu_seqlens_of([int(i) for i in in_small], a["x"].device),
    }


@pytest.mark.parametrize(("shape", "rescale", "dtype"), CASES, ids=case_id)
def test_within_the_error_budget(shape, rescale, dtype):
    arguments = draw(shape, dtype)
    actual, peer = run_all(arguments, rescale), reference_all(arguments, rescale)
    gold = reference_all(cast(arguments, torch.float64), rescale)
    assert actual.keys() == gold.keys()
    shaken = {
        each: [reference_all(shake(arguments, each, seed), rescale) for seed in range(3)]
        for each in {dtype, torch.float32}
    }
    for name, result in actual.items():
        check_budget(
            f"simulated CUDA two bins {short(dtype)}: {name}",
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
@pytest.mark.parametrize("shape", [(3, 9, [9, 4, 1], [5, 4, 0], 24), (2, 5, [3, 4], [3, 1], 1160)], ids=str)
def test_same_bits_in_every_layout(shape, layout, dtype):
    """ "offset" is misaligned and contiguous, so that the kernels read it element by element."""
    arguments = draw(shape, dtype)
    index = arguments.pop("index")
    given = {
        name: laid_out(t, layout) if t.is_floating_point() or layout != "expanded" else t
        for name, t in arguments.items()
    }
    packed = {name: t.clone(memory_format=torch.contiguous_format) for name, t in given.items()}
    assert_same_bits(run_all(given | {"index": index}), run_all(packed | {"index": index}))


@pytest.mark.parametrize("rescale", RESCALE)
def test_rows_that_are_not_kept_are_exact_copies(rescale):
    """Also rows of NaN, infinity and -0, bit for bit, whatever their scores."""
    arguments = draw((3, 20, [7, 20, 0], [3, 11, 0], 72), torch.bfloat16)
    untouched = torch.ones(60, dtype=torch.bool).index_fill(0, arguments["index"], False)
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0] * 18).to(torch.bfloat16)
    arguments["x"].view(60, 72)[untouched] = odd
    arguments["logits"].view(60)[untouched] = float("nan")
    results = run_all(arguments, rescale)
    assert torch.equal(bits(results["out"]).view(60, 72)[untouched], bits(odd).expand(33, 72))
    assert torch.equal(bits(results["d x"]).view(60, 72)[untouched], bits(odd.flip(-1)).expand(33, 72))
    assert results["d logits"].view(60)[untouched].eq(0).all()
    assert all(
        results[name].isfinite().all() for name in ("inner", "d hidden", "d branch", "d gate", "d weight")
    )


@pytest.mark.parametrize("rescale", RESCALE)
def test_a_sample_is_independent_of_its_neighbours(rescale):
    large, small = [9, 0, 21, 4], [9, 0, 6, 0]
    arguments = draw((4, 21, large, small, 72), torch.float32)
    together, firsts = run_all(arguments, rescale), (0, sum(large))
    for b, counts in enumerate(zip(large, small, strict=True)):
        parts = [slice(first, first + count) for first, count in zip(firsts, counts, strict=True)]
        one = {name: arguments[name][b : b + 1] for name in ("x", "gate", "logits", "weight_large")}
        one |= {name: both(arguments[name], parts) for name in ("hidden", "pre")}
        one |= {name: cu_seqlens_of([k], "cpu") for name, k in zip(OFFSETS, counts, strict=True)}
        one |= {"branch": arguments["branch"][parts[0]], "index": arguments["index"][parts[0]] - 21 * b}
        for name, result in run_all(one, rescale).items():
            whole = together[name]
            if whole.shape[0] == sum(large) + sum(small):
                expected = both(whole, parts)
            else:
                expected = whole[parts[0]] if whole.shape[0] == sum(large) else whole[b : b + 1]
            assert torch.equal(bits(result), bits(expected)), (b, name)
        firsts = tuple(part.stop for part in parts)


OFFSETS = ("cu_seqlens_large", "cu_seqlens_small")


def both(t, parts):
    return torch.cat([t[part] for part in parts])


@pytest.mark.parametrize("rescale", RESCALE)
def test_both_bins_are_two_blended_passes_of_one(rescale):
    """From the selection of both at once to the blend, against scatter_rescale on each bin alone."""
    a = draw((3, 12, [9, 5, 12], [4, 0, 12], 40), torch.float32)
    large, small = (a[name].diff().tolist() for name in OFFSETS)
    index, _, _ = route.select(a["logits"], large, small)
    assert torch.equal(index, a["index"])
    prefix = torch.cat([rows[:k] for rows, k in zip(index.split(large), small, strict=True)])
    branches, finish = torch.randn(42, 40), (a["gate"], a["logits"], Rescale(rescale, 2.0))
    passes = [
        scatter.scatter_rescale(Finish(a["x"], PackedRows(rows, 12), a["hidden"][of], branches[of], *finish))
        for rows, of in ((index, slice(26)), (prefix, slice(26, 42)))
    ]
    blended = blend(branches, bins_of(a))
    w = a["weight_large"][:, None, None]
    out = two_bin_blend.two_bin_blend(blend_arguments(a | {"branch": blended}, rescale))
    torch.testing.assert_close(out, w * passes[0] + (1 - w) * passes[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_gelu_far_from_zero(dtype):
    """Where its slope has no digits left if it is computed as 1 - gate, and where the square overflows."""
    values = [s * v for v in (1.0, 2.0, 4.0, 6.0, 9.0, 13.0, 60.0, 6e4) for s in (1.0, -1.0)]
    if dtype != torch.float16:
        values += [1e20, -1e20, 3e38, -3e38]
    pre = torch.tensor([values]).to(dtype)
    bins = Bins(torch.ones(1), cu_seqlens_of([1], "cpu"), cu_seqlens_of([0], "cpu"), rows=1, small=0)
    grad, _ = two_bin_gelu.two_bin_gelu_backward(torch.ones_like(pre), pre, bins)
    inner = two_bin_gelu.two_bin_gelu(pre, bins)
    exact = pre.double().requires_grad_()
    value = torch.nn.functional.gelu(exact, approximate="tanh")
    (slope,) = torch.autograd.grad(value.sum(), exact)
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    torch.testing.assert_close(inner.double(), value.detach(), rtol=2 * eps, atol=4 * eps)
    torch.testing.assert_close(grad.double(), slope, rtol=2 * eps, atol=2 * eps)
    # Below zero both are small numbers, with digits of their own.
    for actual, gold in ((inner, value.detach()), (grad, slope)):
        near = (pre > -7) & (gold.abs() > tiny)
        assert near[0, :5].all()
        torch.testing.assert_close(actual[near].double(), gold[near], rtol=32 * eps, atol=0)


def test_a_packed_row_finds_its_sample():
    """Samples without rows in front, between and behind; inner is then the weight of its sample."""
    keep = [0, 0, 3, 1, 0, 2, 0, 0, 5, 1, 0]
    weight = torch.arange(11.0)
    bins = Bins(weight, cu_seqlens_of(keep, "cpu"), cu_seqlens_of([0] * 11, "cpu"), rows=12, small=0)
    inner = two_bin_gelu.two_bin_gelu(torch.full((12, 1), 100.0), bins)
    assert torch.equal(inner[:, 0], 100 * weight.repeat_interleave(torch.tensor(keep)))


def test_other_element_types_are_an_error():
    one = cu_seqlens_of([1], "cpu")
    with pytest.raises(ValueError, match="float, bfloat16 or half"):
        two_bin_gelu.two_bin_gelu(
            torch.zeros(2, 8, dtype=torch.float64), Bins(torch.ones(1), one, one, rows=1, small=1)
        )


def test_unknown_rescale_is_an_error():
    arguments = draw((1, 3, [2], [1], 8), torch.float32)
    with pytest.raises(ValueError, match="unknown rescale mean"):
        two_bin_blend.two_bin_blend(blend_arguments(arguments, "mean"))
