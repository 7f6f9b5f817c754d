"""The benchmarks' parts: the plain block is that of diffusers, candidates take turns, no fault is timed."""

from dataclasses import replace

import pytest
import torch

from diffratio.bench import case as bench_case
from diffratio.bench import latency, operators, run_training_benchmark, training
from diffratio.bench.case import BlockCase, dense_block, dense_name
from diffratio.bench.latency import block_latency, check_case
from diffratio.bench.operators import operator_latency, work_of
from diffratio.bench.plain import PlainBlock
from diffratio.bench.timing import rotating_medians, rotations
from diffratio_kernels import mod_block, two_bin_block
from diffratio_kernels.testing import budget
from diffratio_kernels.testing.inputs import ModBlockCase

TINY = {"width": 32, "heads": 2, "text": 5, "rounds": 2, "dtype": torch.float32, "device": "cpu"}
CASE = ModBlockCase(seed=0, heads=2, head_dim=16, hidden=48, text=5)


@pytest.fixture(autouse=True)
def own_table_of_ratios(monkeypatch):
    monkeypatch.setattr(budget, "worst", {})


@pytest.fixture
def without_diffusers(monkeypatch):
    monkeypatch.setattr(bench_case, "dense_block", PlainBlock)


def test_the_plain_block_is_that_of_diffusers():
    theirs, plain = dense_block(48, 2), PlainBlock(48, 2)
    plain.load_state_dict(theirs.state_dict())
    x, timestep, text = torch.randn(2, 9, 48), torch.randn(2, 6 * 48), torch.randn(2, 5, 48)
    expected = theirs(x, timestep=timestep, encoder_hidden_states=text)
    torch.testing.assert_close(plain(x, timestep=timestep, encoder_hidden_states=text), expected)
    assert (dense_name(theirs), dense_name(plain)) == ("diffusers dense", "plain torch dense")


def test_a_case_without_diffusers_runs_in_every_way(without_diffusers):
    case = BlockCase(2, 12, 32, 2, 5, torch.float32, "cpu")
    assert isinstance(case.block, PlainBlock)
    torch.testing.assert_close(case.ours(7), case.authors(7), atol=1e-4, rtol=1e-4)
    check_case(case, 7, "reference")
    assert case.dense().shape == case.row_steps(7).shape == (2, 12, 32)


def test_block_latency_on_the_cpu_gives_ratios_only(without_diffusers):
    rows = block_latency(
        2, 16, ("native", "reference"), kept=(1.0, 0.5), compiled=False, progress=False, **TINY
    )
    names = ["plain torch dense"] + 2 * ["authors' eager", "mod_block native", "mod_block reference"]
    assert [row["name"] for row in rows] == names
    assert [row["kept"] for row in rows] == [1.0] * 4 + [0.5] * 3
    assert rows[0]["of_dense"] == 1.0 and all(row["of_dense"] > 0 for row in rows)
    assert all("seconds" not in row and row["mode"] == "eager" and row["flops"] > 0 for row in rows)
    assert rows[4]["flops"] < rows[1]["flops"]


def test_a_wrong_block_is_not_timed(monkeypatch):
    monkeypatch.setattr(latency, "mod_block", lambda **arguments: mod_block(**arguments) * 1.01)
    monkeypatch.setattr(latency, "rotating_medians", lambda *args: pytest.fail("timed"))
    with pytest.raises(AssertionError, match="latency: mod_block native, 8 of 16 kept"):
        block_latency(2, 16, ("native",), kept=(0.5,), compiled=False, **TINY)


def test_operator_latency_on_the_cpu_gives_ratios_only():
    rows = operator_latency(
        2, 16, ("native", "reference"), ("sdpa", "cudnn"), case=CASE, rounds=2, dtype=torch.float32,
        device="cpu", progress=False,
    )  # fmt: skip
    timed = {(row["name"], row["implementation"]): row for row in rows if "refused" not in row}
    assert timed["route", "native"]["of_first"] == 1.0 and timed["route", "reference"]["of_first"] > 0
    assert all(row["bytes"] > 0 < row["flops"] and "seconds" not in row for row in timed.values())
    refused = [row for row in rows if "refused" in row]
    assert [row["implementation"] for row in refused] == ["cudnn"]
    assert "not available" in refused[0]["refused"]


def test_a_wrong_operator_is_not_timed(monkeypatch):
    plain = operators.operator_calls

    def calls(*args, **kwargs):
        made = plain(*args, **kwargs)
        function = made["adaln"].function

        def wrong(**arguments):
            return function(**arguments) * (1.01 if arguments["implementation"] == "native" else 1)

        return made | {"adaln": replace(made["adaln"], function=wrong)}

    monkeypatch.setattr(operators, "operator_calls", calls)
    monkeypatch.setattr(operators, "rotating_medians", lambda *args, **kwargs: pytest.fail("timed"))
    with pytest.raises(AssertionError, match="latency: adaln native"):
        operator_latency(2, 16, ("native",), (), case=CASE, dtype=torch.float32, device="cpu")


def test_work_is_counted_from_the_sizes():
    case = replace(CASE, batch=1, tokens=10, keep=(4,), dtype=torch.bfloat16)  # D = 32, F = 48
    assert work_of("attention", case) == (4 * 4 * 64, 4 * 16 * 32)
    assert work_of("mlp", case) == (2 * 4 * 64 + 2 * 32 * 48 * 2, 2 * 4 * 2 * 32 * 48)
    assert work_of("scatter_rescale", case)[0] == (10 - 4 + 2 * 4 + 10) * 64


def test_candidates_take_turns_over_all_their_buffers():
    order = []
    candidates = {name: [lambda n=name, i=i: order.append((n, i)) for i in range(2)] for name in "ab"}
    seconds = rotating_medians(candidates, 3, "cpu", graphs=True, progress=False)
    assert order == [("a", 0), ("a", 1), ("b", 0), ("b", 1)] * 4
    assert set(seconds) == {"a", "b"} and rotations(1, "cpu") == 2


def test_training_runs_dense_packed_and_twice():
    result = run_training_benchmark(2, 20, 32, 2, 5, bins=((5, 6), (9, 10)), rounds=1, progress=False)
    names = ["mod_block, dense"] + 2 * ["two_bin_block", "mod_block twice", "reference twice"]
    assert [row["name"] for row in result.rows] == names
    assert [(row["kept_small"], row["kept"]) for row in result.rows[1:]] == 3 * [(0.5, 0.6)] + 3 * [
        (0.9, 1.0)
    ]
    assert all(row["seconds"] > 0 < row["peak_bytes"] for row in result.rows)
    assert result.rows[1]["flops"] < result.rows[2]["flops"] == result.rows[3]["flops"]


def test_wrong_training_is_not_timed(monkeypatch):
    monkeypatch.setattr(training, "two_bin_block", lambda **arguments: two_bin_block(**arguments) * 1.01)
    monkeypatch.setattr(training, "interleaved_medians", lambda *args: pytest.fail("timed"))
    with pytest.raises(RuntimeError, match="two_bin_block: a gradient differs"):
        run_training_benchmark(1, 16, 32, 2, 5, bins=((5, 6),), progress=False)
