"""What is measured: every suite runs on the CPU, peers compute what they should, no fault is timed."""

import importlib
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import measure as measuring
from benchmarks.harness.measure import measure
from benchmarks.harness.options import BACKENDS, Options
from benchmarks.peers.caching import first_block_cache, median_change
from benchmarks.peers.plain import PlainBlock
from benchmarks.peers.rows import PEERS
from benchmarks.suites import SUITES, subjects
from benchmarks.suites import block as block_suite
from benchmarks.suites import case as bench_case
from benchmarks.suites import model as model_suite
from benchmarks.suites import operator as operator_suite
from benchmarks.suites import products as products_suite
from benchmarks.suites import training as training_suite
from benchmarks.suites.block import Changed, Routed
from benchmarks.suites.case import BlockCase, cost_of, dense_block, dense_name, operator_case
from diffratio.evaluation.flops import JOINED
from diffratio_kernels import mod_block, two_bin_block
from diffratio_kernels.blocks.routed import routed
from diffratio_kernels.testing import budget
from diffratio_kernels.testing.cases import operator_calls

TINY = Options(tokens=16, width=32, heads=2, text=5, layers=3, steps=4, kept=(1.0, 0.5))


def rows_of(suite, options=TINY):
    return [row for subject in subjects(suite, options) for row in measure(subject, "cpu", 2, False)]


def reasons(rows):
    """Name -> why it was refused, of our failures; none of these names has a time at the same kept part."""
    failed = {(row["name"], row["kept"]): row["refused"] for row in rows if "failed" in row}
    assert not failed.keys() & {(row["name"], row["kept"]) for row in rows if "seconds" in row}
    return {name: reason for (name, _), reason in failed.items()}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """No shares of the error budget are noted, and calls are not repeated until they can be timed well."""
    monkeypatch.setattr(budget, "worst", {})
    monkeypatch.setattr(measuring, "PASS_SECONDS", 0)
    monkeypatch.setattr("benchmarks.harness.timing.cache_bytes", lambda device: 1)


@pytest.fixture
def without_diffusers(monkeypatch):
    monkeypatch.setattr(bench_case, "has_diffusers", lambda: False)


def test_the_plain_block_is_that_of_diffusers():
    theirs, plain = dense_block(48, 2), PlainBlock(48, 2)
    plain.load_state_dict(theirs.state_dict())
    x, timestep, text = torch.randn(2, 9, 48), torch.randn(2, 6 * 48), torch.randn(2, 5, 48)
    expected = theirs(x, timestep=timestep, encoder_hidden_states=text)
    torch.testing.assert_close(plain(x, timestep=timestep, encoder_hidden_states=text), expected)
    assert dense_name() == "diffusers dense"


def test_diffusers_is_there_where_its_blocks_can_be_imported(monkeypatch):
    assert bench_case.has_diffusers()
    monkeypatch.setitem(sys.modules, "diffusers.models.attention", None)  # as where it lacks a requirement
    assert not bench_case.has_diffusers() and isinstance(dense_block(48, 2), PlainBlock)


def test_a_case_without_diffusers_runs_in_every_way(without_diffusers):
    case = BlockCase(replace(TINY, tokens=12))
    assert isinstance(case.block, PlainBlock)
    way = Routed(7, "reference")
    torch.testing.assert_close(Routed(7).block(case), way.authors(case), atol=1e-4, rtol=1e-4)
    way.verify(case)
    assert case.dense().shape == case.row_steps(7).shape == (2, 12, 32)


def test_a_block_beside_its_peers(without_diffusers):
    rows = rows_of("block")
    routed = ["mod_block cpu", "route + gather + scatter", "adaLN + gate + residual"]
    names = ["plain torch dense", "authors' eager", *routed, "authors' eager", "tome:all:0.5", *routed]
    assert [row["name"] for row in rows] == names
    assert [row["kept"] for row in rows] == [1.0] * 5 + [0.5] * 5
    assert rows[0]["of_baseline"] == 1.0 and all(row["of_baseline"] > 0 < row["peak_bytes"] for row in rows)
    by_name = {row["name"]: row["flops"] for row in rows if row["kept"] == 0.5}
    assert by_name["mod_block cpu"] < by_name["authors' eager"] < rows[0]["flops"]


def test_compiled_peers_are_asked_for():
    """What they compute is torch's; here only that they are there, and cuDNN's attention on a GPU alone."""
    [block] = subjects("block", replace(TINY, compile_mode="default"))
    names = [candidate.name for candidate in block.candidates]
    assert names[1] == "dense, compiled" and names.count("authors', compiled") == 1
    [block] = block_suite.subjects(replace(TINY, compile_mode="default", device="cuda"))
    assert "dense, compiled, cudnn" in [candidate.name for candidate in block.candidates]


def test_calls_of_a_model_are_captured_where_there_is_a_gpu():
    [loop] = subjects("sampling", replace(TINY, device="cuda"))
    captured = [candidate for candidate in loop.candidates if candidate.name == "diffratio, CUDA graphs"]
    assert [candidate.kept for candidate in captured] == [1.0, 0.5]


def test_every_suite_has_a_module():
    for suite in SUITES:
        assert next(iter(subjects(suite, TINY))).suite == suite


@pytest.mark.parametrize(
    ("suite", "refused"),
    [
        ("block", {"mod_block cpu"}),
        ("model", {"diffratio"}),
        ("inpaint", {f"hole {part}, routed" for part in ("6.2%", "25.0%", "56.2%", "100.0%")}),
        ("sampling", {"diffratio", "diffratio, cached steps"}),
    ],
)
def test_a_wrong_block_is_not_timed(suite, refused, monkeypatch):
    def wrong(*args, **kwargs):
        return mod_block(*args, **kwargs) * 1.01

    def wrong_in_a_model(*args):
        return routed(*args) * 1.01

    monkeypatch.setattr(block_suite, "mod_block", wrong)
    monkeypatch.setattr("diffratio.routing.forward.routed", wrong_in_a_model)
    found = reasons(rows_of(suite))
    assert found.keys() == refused
    assert all("over the budget" in reason for reason in found.values())


@pytest.mark.parametrize("suite", ["block", "model", "sampling"])
@pytest.mark.filterwarnings("ignore:the routers are untrained")
def test_baselines_that_are_asked_for(suite):
    names = ("tome:mlp:0.5", "atedm:0.2", "mod:0.2:floor")
    found = {row["name"]: row for row in rows_of(suite, replace(TINY, kept=(0.5,), baselines=names))}
    assert found.keys() >= {*names} and "tome:all:0.5" not in found
    dense = next(iter(found.values()))["flops"]
    assert all(0 < found[name]["flops"] < dense and found[name]["seconds"] > 0 for name in names)


def test_a_block_by_a_baseline_that_merges_nothing_is_the_dense_one():
    case = BlockCase(replace(TINY, tokens=64))
    torch.testing.assert_close(Changed("tome:all:0")(case), case.dense(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(Changed("atedm:0")(case), case.dense(), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="^tokens=12 must be a square"):
        Changed("tome:mlp:0.2")(BlockCase(replace(TINY, tokens=12)))


def test_operators_beside_plain_pytorch():
    rows = rows_of("operator", replace(TINY, kept=(0.5,)))
    timed = {(row["subject"], row["name"]): row for row in rows if "refused" not in row}
    assert timed["route", "torch eager"]["of_baseline"] == 1.0 < 10 * timed["route", "cpu"]["of_baseline"]
    assert timed["linear qkv", "torch"]["flops"] == 2 * 16 * 32 * 96
    assert ("cross_attention", "sdpa") in timed and ("scatter_rescale_", "cpu") in timed
    assert all(row["bytes"] > 0 and row["keep"] == 8 for row in timed.values())
    assert all(row["flops"] > 0 for row in timed.values())
    refused = {row["name"]: row["refused"] for row in rows if "refused" in row}
    assert "not available" in refused["cudnn"]


def test_products_that_end_in_the_residual_stream(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    found = {s.name: measure(s, "cpu", 2, False) for s in subjects("operator", TINY) if s.name in JOINED}
    baselines = {"linear_gate_residual": "torch + cpu", "linear_scatter": "torch + cpu"}
    assert {name: rows[-1]["name"] for name, rows in found.items()} == baselines
    for name, (refused, *others, timed) in found.items():
        assert [row["name"] for row in others] == ["quack"] * (name == "linear_gate_residual")
        row_step = JOINED[name][1]
        reason = f"{row_step}: backend='triton' is not available: on the CPU it runs in Triton's"
        assert refused["name"] == "triton" and refused["refused"].startswith(reason)
        assert timed["of_baseline"] == 1.0 and timed["kept"] == 0.5
        cost = cost_of(name, TINY, 8)
        assert (timed["flops"], timed["bytes"]) == (cost.operations, cost.bytes)


@pytest.fixture
def in_triton(monkeypatch):
    """As on a GPU, by the kernels in the interpreter."""
    monkeypatch.setitem(BACKENDS, "cpu", ("triton",))
    return {s.name: s for s in subjects("operator", replace(TINY, kept=(0.5,))) if s.name in JOINED}


@pytest.mark.parametrize("name", JOINED)
def test_a_product_and_its_row_step_beside_the_one_kernel(name, in_triton):
    rows = [row for row in measure(in_triton[name], "cpu", 2, progress=False) if row["name"] != "quack"]
    assert [row["name"] for row in rows] == ["torch + triton", "triton"]
    assert all(row["of_baseline"] > 0 for row in rows)


@pytest.mark.parametrize("name", JOINED)
def test_a_wrong_kernel_of_a_product_is_not_timed(name, monkeypatch):
    module = importlib.import_module(f"diffratio_kernels.ops.fused_linear.{name.removeprefix('linear_')}")
    right = getattr(module, name)

    def wrong(*args, **kwargs):
        return right(*args, **kwargs).flip(0)

    monkeypatch.setattr(module, name, wrong)
    subject = next(one for one in subjects("operator", TINY) if one.name == name)
    found = reasons(measure(subject, "cpu", 2, progress=False))
    assert list(found) == ["triton"] and found["triton"].startswith(f"{name} triton: error")


@pytest.mark.parametrize("name", JOINED)
def test_a_wrong_product_is_not_timed(name, monkeypatch):
    plain = products_suite._ways

    def ways(*args):
        return [(label, lambda case, run=run: run(case) * 1.01) for label, run in plain(*args)]

    monkeypatch.setattr(products_suite, "_ways", ways)
    subject = next(one for one in subjects("operator", TINY) if one.name == name)
    assert any(f"{name} torch" in reason for reason in reasons(measure(subject, "cpu", 2, False)).values())


@pytest.mark.parametrize("op", sorted(PEERS))
def test_plain_pytorch_computes_what_our_operator_does(op):
    call = operator_calls(
        "reference", torch.float64, "cpu", case=replace(operator_case(TINY, 9), router_bias=True)
    )[op]
    ours = call.forward()
    plain = operator_suite.Peer(PEERS[op])(replace(call, arguments=without(call.arguments)))
    if op == "route":
        weights, places = plain
        index, _, logits = ours
        torch.testing.assert_close(places + 16 * torch.arange(2)[:, None], index.view(2, 9))
        torch.testing.assert_close(weights, logits.flatten()[index].sigmoid().view(2, 9))
    else:
        for own, other in zip(ours, plain if isinstance(plain, tuple) else (plain,), strict=True):
            torch.testing.assert_close(other, own)


def without(arguments):
    return {name: value for name, value in arguments.items() if name != "backend"}


def test_a_wrong_operator_is_not_timed(monkeypatch):
    plain = operator_suite.operator_calls

    def calls(*args, **kwargs):
        made = plain(*args, **kwargs)
        function = made["adaln"].function

        def wrong(**arguments):
            return function(**arguments) * (1.01 if arguments["backend"] == "cpu" else 1)

        return {"attention": made["attention"], "adaln": replace(made["adaln"], function=wrong)}

    monkeypatch.setattr(operator_suite, "operator_calls", calls)
    subject = next(one for one in subjects("operator", TINY) if one.name == "adaln")
    rows = measure(subject, "cpu", 2, progress=False)
    assert "adaln cpu" in reasons(rows)["cpu"]
    assert [row["name"] for row in rows if "seconds" in row] == ["torch eager", "reference"]


def test_training_runs_dense_packed_and_twice():
    rows = rows_of("training", replace(TINY, tokens=20, kept=(0.6, 1.0, 0.1)))
    names = ["two_bin_block", "mod_block twice", "reference twice"]
    assert [row["name"] for row in rows] == ["mod_block, dense", "diffusers dense", *names, *names]
    assert [(row["kept_small"], row["kept"]) for row in rows[2:]] == 3 * [(0.5, 0.6)] + 3 * [(0.9, 1.0)]
    assert rows[2]["flops"] < rows[3]["flops"] == rows[4]["flops"]


def test_wrong_training_is_not_timed(monkeypatch):
    monkeypatch.setattr(training_suite, "two_bin_block", lambda **args: two_bin_block(**args) * 1.01)
    found = reasons(rows_of("training"))
    assert list(found) == ["two_bin_block"]
    assert found["two_bin_block"].startswith("two_bin_block: a gradient differs")


def test_a_model_and_its_sampling_share_weights_and_run_in_every_way():
    rows = rows_of("model", replace(TINY, kept=(0.5,)))
    assert [(row["name"], row["layers"]) for row in rows] == [("diffusers dense", 3), ("diffratio", 3)]
    assert rows[1]["flops"] < rows[0]["flops"]
    rows = rows_of("sampling", replace(TINY, kept=(0.5,)))
    names = ["diffusers dense", "dense, cached steps", "diffratio", "diffratio, cached steps"]
    assert [row["name"] for row in rows] == names and {row["batch"] for row in rows} == {2}
    assert all(("skipped" in row) == ("cached" in row["name"]) for row in rows)
    assert 0 < rows[1]["skipped"] < 1
    models = model_suite.Models(TINY)
    twin = model_suite.Twin(models, kept=0.5).model
    weights = dict(twin.named_parameters())
    assert twin is not models.dense and twin is model_suite.Twin(models, kept=0.5).model
    assert all(weights[name] is weight for name, weight in models.dense.named_parameters())
    with pytest.raises(ValueError, match="tokens=15 must be a square"):
        rows_of("model", replace(TINY, tokens=15))


def test_a_hole_costs_its_tokens():
    [subject] = subjects("inpaint", replace(TINY, kept=(0.5,)))
    case = subject.make(0)
    dense, *holes, encoder = subject.candidates
    assert [c.kept for c in holes] == [1.0, 0.5] * 5 and encoder.name == "encoder, once per edit"
    assert [c.flops for c in holes[::2]] == sorted(c.flops for c in holes[::2])
    for candidate in (*holes[::3], encoder):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            candidate.run(case)
        assert counter.get_total_flops() == candidate.flops, candidate.name


def test_the_median_change_of_the_first_block():
    class Adds(nn.Module):
        def forward(self, x, step):
            return x + step

    model = nn.Module()
    model.transformer_blocks = nn.ModuleList([Adds()])
    [block] = model.transformer_blocks

    def run():
        for step in (1, 2, 3, 6, 3):  # changes of 1, 1/2, 1 and 1/2
            block(torch.full((2, 3), 7.0), step)

    assert median_change(model, run) == 0.75 and not block._forward_hooks


def test_cached_steps_skip_blocks_and_leave_no_trace():
    model, case = model_suite.Models(TINY).dense, model_suite.Inputs(TINY)(0)
    plain = model(**case).sample
    with first_block_cache(model, threshold=1e9) as computed:
        first, second = (model(**case).sample for _ in range(2))
    assert computed.steps == 1
    torch.testing.assert_close(first, plain)
    torch.testing.assert_close(second, plain, atol=1e-4, rtol=1e-4)
    with first_block_cache(model, threshold=0.0) as computed:
        model(**case), model(**case | {"timestep": case["timestep"] + 99})
    assert computed.steps == 2
    torch.testing.assert_close(model(**case).sample, plain, atol=0, rtol=0)
    assert "forward" not in vars(model.transformer_blocks[-1])
