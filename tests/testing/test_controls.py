"""The test bench under test: every guard fires on the fault that it is there for."""

import pytest
import torch

from diffratio.evaluation.memory import peak_bytes
from diffratio_kernels import mod_block, reference, two_bin_block
from diffratio_kernels.ops.adaln import cpu as adaln
from diffratio_kernels.testing import budget
from diffratio_kernels.testing.budget import check_budget, gradients, least_error, longest_sum, shake
from diffratio_kernels.testing.cases import LAYOUTS, ModBlockCase, cast, laid_out
from diffratio_kernels.types import PackedRows
from tools.checks import blocks
from tools.checks.blocks import check_mod_block, check_two_bin_block
from tools.checks.random_cases import random_case
from tools.checks.scores import expected_selection, routed_to, score_matrices
from tools.guards.poison import poisoned_memory

BF16, EPS = torch.bfloat16, torch.finfo(torch.bfloat16).eps


@pytest.fixture(autouse=True)
def own_table_of_ratios(monkeypatch):
    """What is rejected here on purpose does not belong into the table at the end of the run."""
    monkeypatch.setattr(budget, "worst", {})


@pytest.fixture
def rounded():
    """gold in fp64 and a peer in bfloat16 that made 3 roundings."""
    gold = torch.randn(40, 40, dtype=torch.float64)
    peer = (gold * (1 + EPS * (3 * torch.rand(40, 40, dtype=torch.float64) - 1.5))).to(BF16)
    return peer, gold


def test_budget_accepts_what_is_as_good_as_the_peer(rounded):
    peer, gold = rounded
    assert check_budget("best", gold.to(BF16), peer, gold) <= check_budget("peer", peer, peer, gold) < 1


@pytest.mark.parametrize("element", [0, 799, -1])
def test_budget_rejects_one_bad_element(rounded, element):
    peer, gold = rounded
    bad, error = gold.clone(), (peer.double() - gold).abs().max()
    bad.view(-1)[element] += 3 * error + 3 * EPS * gold.abs().max()
    with pytest.raises(AssertionError, match="over the budget"):
        check_budget("control", bad.to(BF16), peer, gold)


def test_budget_rejects_three_times_the_error_everywhere(rounded):
    peer, gold = rounded
    with pytest.raises(AssertionError, match="over the budget"):
        check_budget("control", (gold + 3 * (peer.double() - gold)).to(BF16), peer, gold)


def test_budget_rejects_a_bias_that_no_single_element_shows(rounded):
    peer, gold = rounded
    biased = gold + 0.9 * (peer.double() - gold).abs().max()
    with pytest.raises(AssertionError, match="over the budget"):
        check_budget("control", biased.to(BF16), peer, gold)


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_budget_rejects_a_non_finite_element(rounded, value):
    peer, gold = rounded
    bad = peer.clone()
    bad[3, 3] = value
    with pytest.raises(AssertionError, match="over the budget"):
        check_budget("control", bad, peer, gold)


def test_budget_rejects_another_shape_or_dtype(rounded):
    peer, gold = rounded
    for bad in (peer.float(), peer[:-1], peer[None], peer.flatten()):
        with pytest.raises(AssertionError, match="expected torch.bfloat16"):
            check_budget("control", bad, peer, gold)


def summed(t, dtype):
    """The rows of t, one added after the other in `dtype`."""
    total = torch.zeros(t.shape[1:], dtype=dtype)
    for row in t:
        total = total + row.to(dtype)
    return total


def test_a_lucky_peer_does_not_decide():
    """A peer without any error but the store's: what the length of the sum implies is granted, no more."""
    t = torch.randn(4096, 64)
    gold = t.double().sum(0)
    lucky, actual = gold.float(), summed(t, torch.float32)
    with pytest.raises(AssertionError, match="over the budget"):
        check_budget("control", actual, lucky, gold)
    assert check_budget("long sum", actual, lucky, gold, terms=4096) > 0.05
    wrong = gold + 2.5 * least_error(torch.float32, 4096)[0] * gold.abs().max()
    with pytest.raises(AssertionError, match="over the budget"):
        check_budget("control", wrong.float(), lucky, gold, terms=4096)


def test_sums_are_in_fp32_so_their_length_grants_nothing_in_16_bits():
    """A sum that is kept in bf16, as a kernel with the wrong accumulator would, is refused."""
    t = torch.randn(4096, 64).to(BF16)
    gold = t.double().sum(0)
    assert least_error(BF16, 4096)[0] < 1.01 * least_error(BF16, 1)[0]
    assert check_budget("fp32", summed(t, torch.float32).to(BF16), gold.to(BF16), gold, terms=4096) < 1
    with pytest.raises(AssertionError, match="over the budget"):
        check_budget("control", summed(t, BF16), gold.to(BF16), gold, terms=4096)


def test_the_longest_sum_is_the_longest_dimension_of_a_floating_argument():
    arguments = {"x": torch.ones(2, 300, 8), "index": torch.zeros(999, dtype=torch.int64), "keep": [5000]}
    assert longest_sum(arguments) == 300 and longest_sum({"keep": [1]}) == 1


def test_budget_remembers_the_worst(rounded):
    peer, gold = rounded
    used = [check_budget("name", actual, peer, gold) for actual in (gold.to(BF16), peer, gold.to(BF16))]
    assert budget.worst == {"name": max(used)}


def test_shaken_inputs_differ_by_at_most_half_an_ulp():
    arguments = {"x": torch.randn(100), "keep": [3], "index": torch.arange(3)}
    shaken = shake(arguments, torch.float32, seed=0)
    moved = (shaken["x"] / arguments["x"].double() - 1).abs()
    assert 0 < moved.max() <= torch.finfo(torch.float32).eps / 2
    assert shaken["keep"] == [3] and shaken["index"] is arguments["index"]


def wrong_block(x, *args, **kwargs):
    return mod_block(x, *args, **kwargs) * (1 + 1e-2)


def test_block_check_finds_a_wrong_output(monkeypatch):
    monkeypatch.setattr(blocks, "mod_block", wrong_block)
    with pytest.raises(AssertionError, match="seed 0: fp64 output"):
        check_mod_block(0)


def test_block_check_finds_a_wrong_gradient(monkeypatch):
    def twice_the_gradient(x, *args, **kwargs):
        return mod_block(2 * x - x.detach(), *args, **kwargs)

    monkeypatch.setattr(blocks, "mod_block", twice_the_gradient)
    with pytest.raises(AssertionError, match="seed 0: fp64 gradient of x"):
        check_mod_block(0)


@pytest.mark.parametrize("name", ["x", "weight_large"])
def test_two_bin_check_finds_a_wrong_gradient(name, monkeypatch):
    def twice_the_gradient(**arguments):
        value = arguments[name]
        return two_bin_block(**arguments | {name: 2 * value - value.detach()})

    monkeypatch.setattr(blocks, "two_bin_block", twice_the_gradient)
    with pytest.raises(AssertionError, match=f"seed 0: fp64 gradient of {name}"):
        check_two_bin_block(0)
    monkeypatch.setattr(blocks, "_takes_fp64", lambda *_: False)
    with pytest.raises(AssertionError, match=f"d {name}: .* over the budget"):
        check_two_bin_block(0)


def test_poison_reaches_every_fresh_allocation_and_leaves_again():
    was_on = torch.are_deterministic_algorithms_enabled()
    with poisoned_memory():
        assert torch.empty(5).isnan().all() and torch.ones(5).new_empty(3).isnan().all()
        assert (torch.empty(5, dtype=torch.int64) == torch.iinfo(torch.int64).max).all()
    assert torch.are_deterministic_algorithms_enabled() == was_on


def test_poison_shows_a_row_that_nobody_wrote():
    """The launcher of a gather whose last index was lost: only rows of poison tell."""
    x, index = torch.randn(1, 6, 4), torch.tensor([0, 2, 5])
    with poisoned_memory():
        rows = torch.empty(3, 4)
        normed = torch.empty(3, 4)
        zero = torch.zeros(1, 4)
        how = 6, None, zero, zero, "layer", 1e-6
        torch.ops.diffratio_native.gather_adaln(x, index[:2], *how, rows, normed)
        whole = adaln.gather_adaln(x, PackedRows(index, 6), zero, zero, 1e-6)
    assert rows[:2].isfinite().all() and rows[2].isnan().all() and normed[2].isnan().all()
    assert all(t.isfinite().all() for t in whole)


@pytest.mark.parametrize("name", ["some nan", "all equal", "two values", "everything"])
def test_plain_topk_would_not_pass_the_score_matrices(name):
    scores = score_matrices(33)[name]
    by_topk = [row.topk(11).indices.sort().values.tolist() for row in scores]
    assert by_topk != [expected_selection(row.tolist(), 11) for row in scores]


def test_expected_selection_in_the_words_of_the_order():
    nan, inf = float("nan"), float("inf")
    assert expected_selection([1.0, 3.0, 2.0], 2) == [1, 2]
    assert expected_selection([-inf, nan, -inf], 2) == [0, 2]
    assert expected_selection([0.0, -0.0, 0.0], 1) == expected_selection([-0.0, 0.0, 0.0], 1) == [0]
    assert expected_selection([nan, nan, inf], 2) == [0, 2]


def test_routed_to_gives_exactly_these_logits():
    for scores in score_matrices(9).values():
        logits = reference.router_logits(*routed_to(scores, 6))
        assert torch.equal(logits.nan_to_num(7), scores.nan_to_num(7))


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "contiguous"])
def test_layouts_are_other_layouts_of_the_same_values(layout):
    t = torch.randn(3, 4, 5)
    other = laid_out(t, layout)
    assert other.stride() != t.stride() or other.data_ptr() % 16 != t.data_ptr() % 16
    assert torch.equal(other, t[:1].expand(t.shape) if layout == "expanded" else t)


def test_peak_counts_what_is_allocated_inside_an_operator_and_no_inputs():
    a = torch.randn(256, 256)  # 256 KiB
    size = a.numel() * a.element_size()
    calls = {lambda: a: 0, lambda: a + 1: 1, lambda: (a + 1) + 1: 2, lambda: a.sum(1): 1 / 256}
    for call, copies in calls.items():
        call()
        assert peak_bytes(call) == pytest.approx(copies * size, abs=4096)
    inside = torch.randn(3, 4096)
    assert peak_bytes(lambda: inside.sort(1).values.sum()) >= inside.numel() * 12  # values and int64 indices


def test_cast_changes_floats_only():
    a = cast({"x": torch.ones(2), "index": torch.arange(2), "keep": [1]}, torch.float64)
    assert a["x"].dtype == torch.float64 and a["index"].dtype == torch.int64 and a["keep"] == [1]


def test_random_cases_meet_every_edge_within_300_seeds():
    cases = [random_case(seed) for seed in range(300)]
    lengths = [n for c in cases if c.ragged_text for n in c.arguments()["context_lengths"].tolist()]
    kept = {(k, c.tokens) for c in cases for k in c.full_keep}
    assert {0} < {k for k, _ in kept} and any(0 < k == n for k, n in kept) and any(n == 1 for _, n in kept)
    assert any(sum(c.keep) == 0 for c in cases) and any(len(c.keep) == 1 < c.batch for c in cases)
    assert any(c.text is None for c in cases) and 0 in lengths
    assert {c.rescale for c in cases} == {"mlp", "residual", "output", "none"}
    assert {c.dtype for c in cases} == {torch.float32, BF16, torch.float16}
    assert {c.layout for c in cases} == set(LAYOUTS) and {c.score_scale for c in cases} == {1.0, 2.0}
    assert random_case(5) == random_case(5) and random_case(5, BF16).dtype is BF16


def test_gradients_are_the_same_draw_in_every_dtype():
    case = ModBlockCase(seed=0, dtype=torch.float64).arguments()
    (_, a), (_, b) = (gradients(mod_block, cast(case, d), seed=3) for d in (torch.float64, torch.float32))
    assert a.keys() == b.keys() and torch.allclose(a["x"], b["x"].double(), atol=1e-4)
