"""The C++ row kernels, of one bin and of two: the reference in fp64, exact copies, and the same bits whatever
surrounds them."""

import pytest
import torch

from diffratio_kernels import reference
from diffratio_kernels.ops.adaln import cpu as adaln
from diffratio_kernels.ops.cpu import row_map_of
from diffratio_kernels.ops.route import cpu as route
from diffratio_kernels.ops.scatter_rescale import cpu as scatter_rescale
from diffratio_kernels.ops.two_bin_blend import cpu as two_bin_blend
from diffratio_kernels.ops.two_bin_gelu import cpu as two_bin_gelu
from diffratio_kernels.testing.budget import check_budget, longest_sum, shake
from diffratio_kernels.testing.cases import cast
from diffratio_kernels.types import Bins, Finish, PackedRows, Rescale

pytestmark = pytest.mark.usefixtures("every_instruction_set")
RESCALE = ("mlp", "residual", "output", "none")
SHAPES = [  # B, N, kept, D
    (1, 1, [1], 1),
    (2, 5, [3, 0], 1),
    (3, 9, [9, 4, 1], 7),
    (2, 40, [17, 23], 8),
    (1, 33, [0], 72),
    (4, 17, [5, 17, 0, 8], 72),
    (2, 19, [11, 19], 1152),
]
RELATIVE = 1e-12  # sums of up to 1152 terms of size 1 in fp64, in another order: 1152 * 2**-53 = 1.3e-13


def draw(shape, dtype=torch.float64):
    """x and everything the row kernels take with it, by name; of two bins, the small one keeps half of the
    first sample, all of the second, none of the third."""
    batch, tokens, keep, width = shape
    x, logits = torch.randn(batch, tokens, width).to(dtype), torch.randn(batch, tokens).to(dtype)
    keep_small = [(k // 2, k, 0, k // 3)[b % 4] for b, k in enumerate(keep)]
    kept, both = sum(keep), sum(keep) + sum(keep_small)
    return {
        "x": x,
        "index": reference.select_tokens(logits, keep, keep_small)[0],
        "shift": torch.randn(batch, width).to(dtype),
        "scale": torch.randn(batch, width).to(dtype),
        "hidden": torch.randn(kept, width).to(dtype),
        "branch": torch.randn(kept, width).to(dtype),
        "both": 2 * torch.randn(both, width).to(dtype),
        "logits": logits,
        "weight": torch.randn(width).to(dtype),
        "weight_large": torch.rand(batch).to(dtype),
        "keep": keep,
        "keep_small": keep_small,
    }


def bins_of(a):
    counts = a["keep"], a["keep_small"]
    cu_seqlens = (reference.cu_seqlens_of(each, torch.device("cpu")) for each in counts)
    return Bins(a["weight_large"], *cu_seqlens, *map(sum, counts))


def run_two_bins(a, rescale="mlp"):
    """The C++ kernels of two bins, forward and backward: name -> tensor."""
    bins, x = bins_of(a), a["x"]
    rows = PackedRows(a["index"], x.shape[1], bins=bins)
    finish = Finish(x, rows, a["both"], a["branch"], a["scale"], a["logits"], Rescale(rescale, 2.0))
    blended = two_bin_blend.two_bin_blend_backward(x.flip(-1), finish)
    gelu = two_bin_gelu.two_bin_gelu_backward(a["branch"], a["both"], bins)
    names = ("d x", "d both", "d branch", "d gate", "d logits", "d weights")
    return {
        "two bins: out": two_bin_blend.two_bin_blend(finish),
        "two bins: inner": two_bin_gelu.two_bin_gelu(a["both"], bins),
        **{f"two bins: {name}": t for name, t in zip(names, blended, strict=True)},
        **dict(zip(("two bins: d pre", "two bins: d gelu weights"), gelu, strict=True)),
    }


def reference_two_bins(a, rescale="mlp"):
    """The same by the reference and autograd; each row is a sample of its own with a weight."""
    a = {
        n: t.clone().requires_grad_() if torch.is_tensor(t) and t.is_floating_point() else t
        for n, t in a.items()
    }
    in_small = [int(t < k) for large, k in zip(a["keep"], a["keep_small"], strict=True) for t in range(large)]
    counts = torch.tensor(a["keep"], dtype=torch.int64)
    weights = a["weight_large"].detach().repeat_interleave(counts).requires_grad_()
    bins = bins_of({"keep": [1] * len(in_small), "keep_small": in_small, "weight_large": weights})
    x, rows = a["x"], PackedRows(a["index"], a["x"].shape[1], bins=bins)
    finish = a["both"], a["branch"], a["scale"], a["logits"], Rescale(rescale, 2.0)
    out = reference.two_bin_blend(Finish(x, rows, *finish))
    inner = reference.two_bin_gelu(a["both"], bins)
    leaves = [x, a["both"], a["branch"], a["scale"], a["logits"], weights]
    blended = torch.autograd.grad(out, leaves, x.detach().flip(-1), materialize_grads=True)
    gelu = torch.autograd.grad(inner, [a["both"], weights], a["branch"].detach(), materialize_grads=True)
    names = ("d x", "d both", "d branch", "d gate", "d logits", "d weights")
    return {
        "two bins: out": out.detach(),
        "two bins: inner": inner.detach(),
        **{f"two bins: {name}": t for name, t in zip(names, blended, strict=True)},
        **dict(zip(("two bins: d pre", "two bins: d gelu weights"), gelu, strict=True)),
    }


def run_all(a, rescale="mlp", eps=1e-6):
    """Every C++ row kernel once, forward and backward: name -> tensor."""
    x, packed = a["x"], PackedRows(a["index"], a["x"].shape[1])
    rows, normed = adaln.gather_adaln(x, packed, a["shift"], a["scale"], eps)
    finish = Finish(x, packed, a["hidden"], a["branch"], a["scale"], a["logits"], Rescale(rescale, 2.0))
    # Incoming gradients: any tensors of the right shape that depend on nothing random.
    backward = adaln.adaln_backward(
        rows, packed, a["scale"], eps, a["branch"], a["hidden"], x[..., 0].numel()
    )
    packed_backward = adaln.adaln_backward(a["hidden"], packed, a["scale"], eps, None, a["branch"], None)
    scattered = scatter_rescale.scatter_rescale_backward(x.flip(-1), finish)[:5]
    return run_two_bins(a, rescale) | {
        "router_logits": route.router_logits(x, a["weight"], None),
        "rows": rows,
        "normed": normed,
        "packed": adaln.adaln(a["hidden"], packed, a["shift"], a["scale"], eps),
        "out": scatter_rescale.scatter_rescale(finish),
        "d x": backward[0].view(x.shape),
        **dict(zip(("d shift", "d scale"), backward[1:], strict=True)),
        **dict(zip(("d rows", "d packed shift", "d packed scale"), packed_backward, strict=True)),
        **dict(zip(("d x out", "d hidden", "d branch", "d gate", "d logits"), scattered, strict=True)),
    }


def reference_all(a, rescale="mlp", eps=1e-6):
    """The same by the reference and autograd."""
    expected = reference_two_bins(a, rescale)
    a = {
        n: t.clone().requires_grad_() if torch.is_tensor(t) and t.is_floating_point() else t
        for n, t in a.items()
    }
    x, of_index = a["x"], PackedRows(a["index"], a["x"].shape[1])
    rows, normed = reference.gather_adaln(x, of_index, a["shift"], a["scale"], eps)
    packed = reference.adaln(a["hidden"], of_index, a["shift"], a["scale"], eps)
    finish = a["hidden"], a["branch"], a["scale"], a["logits"], Rescale(rescale, 2.0)
    out = reference.scatter_rescale(Finish(x, of_index, *finish))

    def gradients(outputs, inputs, incoming):
        leaves = [a[name] for name in inputs]
        return torch.autograd.grad(outputs, leaves, [g.detach() for g in incoming], materialize_grads=True)

    backward = gradients([rows, normed], ["x", "shift", "scale"], [a["branch"], a["hidden"]])
    packed_backward = gradients([packed], ["hidden", "shift", "scale"], [a["branch"]])
    scattered = gradients([out], ["x", "hidden", "branch", "scale", "logits"], [x.flip(-1)])
    return expected | {
        "router_logits": reference.router_logits(x, a["weight"]),
        "rows": rows,
        "normed": normed,
        "packed": packed,
        "out": out,
        **dict(zip(("d x", "d shift", "d scale"), backward, strict=True)),
        **dict(zip(("d rows", "d packed shift", "d packed scale"), packed_backward, strict=True)),
        **dict(zip(("d x out", "d hidden", "d branch", "d gate", "d logits"), scattered, strict=True)),
    }


def bits(t):
    """A tensor's bits as integers: NaN equals itself and -0 differs from +0."""
    return t.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


def assert_same_bits(actual, expected):
    for name in expected:
        assert torch.equal(bits(actual[name]), bits(expected[name])), name


@pytest.mark.parametrize("rescale", RESCALE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_equal_the_reference_in_fp64(shape, rescale):
    arguments = draw(shape)
    actual, expected = run_all(arguments, rescale), reference_all(arguments, rescale)
    for name, gold in expected.items():
        assert actual[name].shape == gold.shape and actual[name].dtype == gold.dtype, name
        if gold.numel():
            assert (actual[name] - gold).abs().max() <= RELATIVE * gold.abs().max().clamp(min=1), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_selected_tokens_are_those_of_the_reference(shape):
    _, _, keep, _ = shape
    logits = draw(shape)["logits"].float()
    for small in (None, draw(shape)["keep_small"]):
        index, cu_seqlens, row_map = route.select(logits, keep, small)
        expected, offsets = reference.select_tokens(logits, keep, small)
        assert torch.equal(index, expected) and torch.equal(cu_seqlens, offsets)
        assert torch.equal(row_map, row_map_of(PackedRows(index, 1), logits.numel()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gathered_and_untouched_rows_are_exact_copies(dtype):
    """Also rows of NaN, infinity and -0, bit for bit."""
    arguments = draw((3, 20, [7, 20, 0], 72), dtype)
    arguments["x"][:, ::5] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0] * 18).to(dtype)
    flat, index = bits(arguments["x"]).flatten(0, 1), arguments["index"]
    results = run_all(arguments)
    assert torch.equal(bits(results["rows"]), flat[index])
    untouched = torch.ones(60, dtype=torch.bool).index_fill(0, index, False)
    incoming = bits(arguments["x"].flip(-1)).flatten(0, 1)
    for out, grad in (("out", "d x out"), ("two bins: out", "two bins: d x")):
        assert torch.equal(bits(results[out]).flatten(0, 1)[untouched], flat[untouched])
        assert torch.equal(bits(results[grad]).flatten(0, 1)[untouched], incoming[untouched])


@pytest.mark.parametrize("rescale", RESCALE)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_scores_of_tokens_that_are_not_kept_change_nothing(value, rescale):
    arguments = draw((2, 20, [7, 11], 24), torch.float32)
    expected = run_all(arguments, rescale)
    untouched = torch.ones(40, dtype=torch.bool).index_fill(0, arguments["index"], False).view(2, 20)
    arguments["logits"][untouched] = value
    assert_same_bits(run_all(arguments, rescale), expected)
    for name in ("d logits", "two bins: d logits"):
        assert expected[name][untouched].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rescale", RESCALE)
def test_same_bits_again_and_on_two_threads(dtype, rescale):
    arguments = draw((4, 70, [70, 33, 1, 50], 200), dtype)  # 280 rows and 200 columns: several tasks each
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run_all(arguments, rescale)
        assert_same_bits(run_all(arguments, rescale), expected)
        torch.set_num_threads(2)
        assert_same_bits(run_all(arguments, rescale), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("rescale", RESCALE)
def test_a_sample_is_independent_of_its_neighbours(rescale):
    keep = [9, 0, 21, 4]
    arguments = draw((4, 21, keep, 72), torch.float32)
    together, kept, small = run_all(arguments, rescale), sum(keep), arguments["keep_small"]
    for b in range(4):
        of_sample = slice(sum(keep[:b]), sum(keep[: b + 1]))
        of_small = slice(kept + sum(small[:b]), kept + sum(small[: b + 1]))

        def own(t, b=b, of_sample=of_sample, of_small=of_small):
            if t.shape[0] == kept + sum(small):
                return torch.cat([t[of_sample], t[of_small]])
            return t[of_sample] if t.shape[0] == kept else t.view(4, -1, *t.shape[1:])[b]

        alone = {name: own(t) for name, t in arguments.items() if torch.is_tensor(t) and name != "weight"}
        alone = {
            n: t if n in ("hidden", "branch", "both", "index") else t.view(1, *arguments[n].shape[1:])
            for n, t in alone.items()
        }
        alone |= {"weight": arguments["weight"], "index": alone["index"] - 21 * b}
        alone |= {"keep": keep[b : b + 1], "keep_small": small[b : b + 1]}
        for name, result in run_all(alone, rescale).items():
            assert torch.equal(bits(result), bits(own(together[name]).view(result.shape))), (b, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if sum(shape[2]) > 8], ids=str)
def test_two_bins_are_within_the_error_budget(shape, dtype):
    for rescale in ("mlp", "residual"):
        a = draw(shape, dtype)
        a |= {name: a[name].float() for name in ("scale", "logits", "weight_large")}  # as in a model
        actual, peer = run_two_bins(a, rescale), reference_two_bins(a, rescale)
        gold = reference_two_bins(cast(a, torch.float64), rescale)
        shaken = {
            each: [reference_two_bins(shake(a, each, seed), rescale) for seed in range(4)]
            for each in {t.dtype for t in actual.values()}
        }
        for name, t in actual.items():
            floor = [each[name] for each in shaken[t.dtype]] if ": d " in name else ()
            check_budget(
                f"cpu {dtype}, {name}", t, peer[name], gold[name], shaken=floor, terms=longest_sum(a)
            )


def test_the_row_map_is_the_inverse_of_the_index():
    index = torch.tensor([3, 0, 5])
    assert row_map_of(PackedRows(index, 1), 7).tolist() == [1, -1, -1, 0, -1, 2, -1]
    for bad in ([7], [-1], [2, 2]):
        with pytest.raises(ValueError, match="index"):
            row_map_of(PackedRows(torch.tensor(bad), 1), 7)
