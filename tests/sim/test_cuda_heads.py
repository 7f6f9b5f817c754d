"""`qk_norm_rope` in CUDA C++, in the simulator: the results of the reference, the same bits everywhere."""

import os

import pytest
import torch

from diffratio_kernels.ops.qk_norm_rope import cuda, op, reference
from diffratio_kernels.testing.budget import check_budget, longest_sum, shake
from diffratio_kernels.testing.cases import cast, laid_out
from diffratio_kernels.types import HeadNorm, Heads, PackedRows, Rope
from tests.sim.ids import case_id, short
from tools.guards.poison import poisoned_memory
from tools.launchers.check import assert_same_bits, bits

pytestmark = pytest.mark.usefixtures("simulated")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INDEX = torch.tensor([0, 2, 3, 6, 7, 8, 10, 12, 13])
TOKENS = 7
CASES = {  # H, h, d, norm, across heads, tables [samples, heads, pairs], halves
    "one lane a head": (2, 1, 8, "rms", False, (1, 1, 4), False),
    "Flux": (3, 3, 128, "rms", False, (1, 1, 64), False),
    "Krea, halves": (6, 2, 128, "rms", False, (2, 1, 64), True),
    "widest": (2, 1, 256, "layer", False, (1, 1, 128), False),
    "widest halves, few turn": (2, 2, 256, "rms", False, (1, 2, 32), True),
    "odd vectors": (4, 2, 72, "rms", False, (2, 1, 36), False),
    "halves between vectors": (4, 4, 72, "layer", False, (1, 4, 18), True),
    "narrow": (5, 5, 6, "layer", False, (1, 1, 3), True),
    "some turn": (3, 1, 40, "none", False, (1, 1, 12), False),
    "nothing": (2, 2, 40, "none", False, None, False),
    "no rope": (3, 3, 64, "rms", False, None, False),
    "Wan": (5, 5, 128, "rms", True, (1, 1, 64), False),
    "LTX": (6, 6, 64, "rms", True, (2, 6, 32), False),
    "across few": (7, 3, 24, "layer", True, (1, 1, 12), True),
    "across narrow": (3, 2, 10, "layer", True, (1, 1, 4), False),
    "many warps": (33, 33, 128, "rms", True, (1, 1, 64), False),
}
WEIGHTS = ("query_weight", "key_weight", "query_bias", "key_bias")
RUNS = [(name, dtype) for name in CASES for dtype in DTYPES]


def assert_close(actual, expected):
    """As near as another order in fp32, and one rounding, leave results."""
    for name, t in expected.items():
        limit = (64 * torch.finfo(torch.float32).eps + torch.finfo(t.dtype).eps) * t.abs().max().clamp(min=1)
        assert (actual[name].float() - t.float()).abs().max() <= limit, name


def draw(name, dtype, weights=None, index=INDEX):
    """Everything that the kernels take, by name; weights in fp32 for half of the cases."""
    heads, few, width, kind, across, tables, _ = CASES[name]
    rows = len(index)
    parts = torch.randn(rows, (heads + 2 * few) * width).to(dtype)
    query, key, value = parts.split([heads * width, few * width, few * width], dim=1)
    a = {"query": query, "key": key, "value": value, "index": index}
    if kind != "none":
        weights = weights or (torch.float32, dtype)[len(name) % 2]
        for given, count in zip(WEIGHTS, (heads, few) * 2, strict=True):
            if given.endswith("weight") or kind == "layer":
                a[given] = (1 + torch.randn(width * (count if across else 1)) / 4).to(weights)
    if tables is not None:
        samples, groups, pairs = tables
        angle = torch.rand(samples, TOKENS, groups, pairs) * 6
        a |= {"cos": angle.cos(), "sin": angle.sin()}
    return a | {"grad": torch.randn(rows, heads + 2 * few, width).to(dtype)}


def bundles(name, a):
    heads, few, _, kind, across, _, halves = CASES[name]
    norm = None if kind == "none" else HeadNorm(kind, *(a.get(each) for each in WEIGHTS), 1e-5, across)
    rope = Rope(a["cos"], a["sin"], halves) if "cos" in a else None
    return Heads(a["query"], a["key"], a["value"], heads, few), PackedRows(a["index"], TOKENS), norm, rope


def run_all(name, a):
    """Both kernels: name -> tensor."""
    grads = cuda.qk_norm_rope_backward(a["grad"], *bundles(name, a))
    found = dict(zip(("query", "key", *WEIGHTS), grads, strict=True))
    return {"heads": cuda.qk_norm_rope(*bundles(name, a))} | {f"d {n}": t for n, t in found.items() if n in a}


def reference_all(name, a):
    """The same by the reference and autograd, in the dtypes of the arguments."""
    names = [each for each in ("query", "key", *WEIGHTS) if each in a]
    leaves = {each: a[each].clone().requires_grad_() for each in names}
    heads = reference.qk_norm_rope(*bundles(name, a | leaves))
    grads = torch.autograd.grad(heads, list(leaves.values()), a["grad"])
    return {"heads": heads.detach()} | {f"d {each}": grad for each, grad in zip(names, grads, strict=True)}


@pytest.mark.parametrize(("name", "dtype"), RUNS, ids=case_id)
def test_within_the_error_budget(name, dtype):
    a = draw(name, dtype)
    actual, peer, gold = run_all(name, a), reference_all(name, a), reference_all(name, cast(a, torch.float64))
    shaken = [reference_all(name, shake(a, dtype, seed)) for seed in range(2)]
    for each, result in actual.items():
        check_budget(
            f"simulated qk_norm_rope {short(dtype)}: {each}",
            result.to(peer[each].dtype),
            peer[each],
            gold[each],
            shaken=[other[each] for other in shaken] if each.startswith("d ") else (),
            terms=longest_sum(a),
        )


@pytest.mark.parametrize(("name", "dtype"), RUNS, ids=case_id)
def test_same_bits_under_every_schedule_in_poisoned_memory(simulator, name, dtype):
    a = draw(name, dtype)
    expected = run_all(name, a)
    try:
        with poisoned_memory():
            for seed in range(3):
                simulator.seed(seed)
                assert_same_bits(run_all(name, a), expected)
    finally:
        simulator.seed(0)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("layout", ["transposed", "sliced", "offset"])
@pytest.mark.parametrize("name", ["Flux", "Krea, halves", "odd vectors", "LTX"])
def test_same_bits_in_every_layout(name, layout, dtype):
    """ "offset" is misaligned, so that the kernels read it element by element.

    That is other code, in which nvcc may fuse other products and sums.
    """
    a = draw(name, dtype)
    given = {each: t if each == "index" else laid_out(t, layout) for each, t in a.items()}
    actual, expected = run_all(name, given), run_all(name, a)
    if layout == "offset" and "DIFFRATIO_PTX" in os.environ:
        assert_close(actual, expected)
    else:
        assert_same_bits(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("name", ["Flux", "odd vectors", "Wan"])
def test_values_are_exact_copies(name, dtype):
    """Also NaN, infinity and -0, bit for bit; and they are no part of anything else."""
    a = draw(name, dtype)
    expected = run_all(name, a)
    special = torch.tensor([float("nan"), float("inf"), -0.0, -1.0]).to(dtype)
    special[0] = bits(special)[0].bitwise_or(1).view(dtype)  # a NaN with a payload
    a["value"] = special.repeat(a["value"].numel() // 4).view(a["value"].shape)
    actual = run_all(name, a)
    few = CASES[name][1]
    of_value = actual["heads"][:, -few:].flatten(1)
    assert torch.equal(bits(of_value), bits(a["value"]))
    actual["heads"][:, -few:] = expected["heads"][:, -few:]
    assert_same_bits(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("name", ["Krea, halves", "across few"])
def test_rows_go_to_their_places_among_those_of_another_stream(name, dtype):
    """Three rows of it behind those of each sample, which nobody touches."""
    a = draw(name, dtype)
    given = bundles(name, a)
    alone = cuda.qk_norm_rope(*given)
    out = torch.full((len(INDEX) + 6, *alone.shape[1:]), 7, dtype=dtype)
    cuda.qk_norm_rope(*given, out, torch.tensor([0, 3], dtype=torch.int32))
    first = int((INDEX < TOKENS).sum())
    assert torch.equal(bits(torch.cat([out[:first], out[first + 3 : -3]])), bits(alone))
    assert torch.cat([out[first : first + 3], out[-3:]]).eq(7).all()


@pytest.mark.parametrize("name", ["Flux", "odd vectors", "LTX", "across narrow"])
def test_gradients_of_weights_are_summed_over_many_rows(name):
    """Several slices, and a last one that is not full."""
    index = torch.arange(2 * TOKENS).repeat(10)[:133]
    a = draw(name, torch.float32, index=index)
    actual, gold = run_all(name, a), reference_all(name, cast(a, torch.float64))
    peer = reference_all(name, a)
    for each in gold:
        check_budget(
            f"simulated qk_norm_rope: {each} of many rows", actual[each], peer[each], gold[each], terms=512
        )


def test_no_rows():
    a = draw("Flux", torch.bfloat16, index=INDEX[:0])
    results = run_all("Flux", a)
    assert results["heads"].shape == (0, 9, 128)
    assert not results["d query_weight"].any()


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize(("heads", "width"), [(1, 256), (1, 258), (113, 72), (64, 72), (32, 256), (33, 256)])
def test_the_operator_knows_what_a_block_holds(heads, width, across, monkeypatch):
    """What the kernels refuse "auto" leaves to others, and backend="cuda" says so."""
    monkeypatch.setattr(op, "choose", lambda name, asked, device, dtype, unfit: unfit)
    rows, norm = torch.zeros(0, heads * width), HeadNorm("rms", None, None, None, None, 1e-6, across)
    for turning in (1, 30, width // 2):
        rope = Rope(*torch.zeros(2, 1, TOKENS, 1, turning), halves=True)
        given = Heads(rows, rows, rows, heads, heads)
        try:
            cuda.qk_norm_rope(given, PackedRows(INDEX[:0], TOKENS), norm, rope)
        except ValueError as error:
            assert "heads are too wide" in str(error)
            assert op._backend("auto", given, norm, rope) == "cuda"
            with pytest.raises(ValueError, match=f"backend='cuda' holds no head of {width} channels"):
                op._backend("cuda", given, norm, rope)
        else:
            assert op._backend("cuda", given, norm, rope) is None
