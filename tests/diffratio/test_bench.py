"""The benchmarks' parts: the plain block is that of diffusers, candidates take turns, no fault is timed."""

from dataclasses import replace

import pytest
import torch

from diffratio.bench import case as bench_case
from diffratio.bench import measure as measuring
from diffratio.bench import operators, run_training_benchmark, training
from diffratio.bench.case import BlockCase, dense_block, dense_name
from diffratio.bench.levels import block as block_level
from diffratio.bench.levels.block import block as pixart_block
from diffratio.bench.levels.block import check_block
from diffratio.bench.measure import measure
from diffratio.bench.operators import operator_latency, work_of
from diffratio.bench.peers.tome import Matching, tome_block
from diffratio.bench.plain import PlainBlock
from diffratio.bench.subject import Candidate, Subject
from diffratio.bench.timing import Times, rotating_times, rotations
from diffratio_kernels import mod_block, two_bin_block
from diffratio_kernels.testing import budget
from diffratio_kernels.testing.inputs import ModBlockCase

TINY = {"width": 32, "heads": 2, "text": 5, "dtype": torch.float32, "device": "cpu"}
CASE = ModBlockCase(seed=0, heads=2, head_dim=16, hidden=48, text=5)


@pytest.fixture(autouse=True)
def own_table_of_ratios(monkeypatch):
    monkeypatch.setattr(budget, "worst", {})


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


def test_a_case_without_diffusers_runs_in_every_way(without_diffusers):
    case = BlockCase(2, 12, 32, 2, 5, torch.float32, "cpu")
    assert isinstance(case.block, PlainBlock)
    torch.testing.assert_close(case.ours(7), case.authors(7), atol=1e-4, rtol=1e-4)
    check_block(case, 7, "reference")
    assert case.dense().shape == case.row_steps(7).shape == (2, 12, 32)


def test_a_block_on_the_cpu_gives_ratios_only(without_diffusers):
    subject = pixart_block(2, 16, ("native", "reference"), kept=(1.0, 0.5), compile_mode=None, **TINY)
    rows = measure(subject, "cpu", rounds=2, progress=False)
    routed = ["mod_block native", "mod_block reference", "route + gather + scatter"]
    names = ["plain torch dense", "authors' eager", *routed, "authors' eager", "ToMe", *routed]
    assert [row["name"] for row in rows] == names
    assert [row["kept"] for row in rows] == [1.0] * 5 + [0.5] * 5
    assert rows[0]["of_baseline"] == 1.0 and all(row["of_baseline"] > 0 for row in rows)
    assert all("seconds" not in row and row["spread"] >= 0 < row["peak_bytes"] for row in rows)
    assert all((row["level"], row["mode"], row["cache"]) == ("block", "eager", "cold") for row in rows)
    by_name = {row["name"]: row["flops"] for row in rows if row["kept"] == 0.5}
    assert by_name["mod_block native"] < by_name["authors' eager"] < rows[0]["flops"]
    assert rows[0]["tokens"] == 16 and rows[0]["width"] == 32


def test_a_wrong_block_is_not_timed(monkeypatch):
    monkeypatch.setattr(block_level, "mod_block", lambda **arguments: mod_block(**arguments) * 1.01)
    monkeypatch.setattr(measuring, "rotating_times", lambda *args: pytest.fail("timed"))
    subject = pixart_block(2, 16, ("native",), kept=(0.5,), compile_mode=None, **TINY)
    with pytest.raises(AssertionError, match="mod_block native, 8 of 16 kept"):
        measure(subject, "cpu", progress=False)


def test_a_candidate_that_does_not_run_is_a_row_with_the_reason():
    def fail(case):
        raise RuntimeError("no such device\nmore")

    def subject(*candidates):
        return Subject("op", "add", {"batch": 1}, lambda seed: torch.ones(2), 8, candidates)

    able, unable = Candidate("able", lambda x: x + 1), Candidate("unable", fail)
    timed, refused = sorted(measure(subject(able, unable), "cpu", 2, False), key=lambda row: row["name"])
    assert timed["name"] == "able" and timed["of_baseline"] == 1.0 and "refused" not in timed
    assert refused["refused"] == "no such device" and "of_baseline" not in refused
    with pytest.raises(RuntimeError, match="add: the baseline does not run: no such device"):
        measure(subject(unable, able), "cpu", 2, False)


def test_ratios_are_taken_round_by_round():
    """A machine that slows down in the middle changes times, not ratios."""
    slow = [1.0, 1.0, 3.0, 3.0, 3.0]
    times = Times([2 * s for s in slow])
    assert times.ratio(Times(slow)) == 2.0 and times.median == 6.0 and times.spread > 0.5
    assert Times([1.0]).spread == 0.0


def test_merged_tokens_that_are_alike_come_back():
    x = torch.randn(2, 16, 8).view(2, 4, 4, 8).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    matching = Matching(x, 16)
    assert matching.merge(x).shape == (2, 16, 8)
    torch.testing.assert_close(matching.unmerge(matching.merge(x)), x)
    case = BlockCase(2, 64, 32, 2, 5, torch.float32, "cpu")
    inputs = case.block, case.x, case.timestep, case.text
    torch.testing.assert_close(tome_block(*inputs, 64), case.dense(), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(tome_block(*inputs, 32), case.dense(), atol=1e-3)
    for left, tokens in ((15, 64), (4, 12)):
        with pytest.raises(ValueError, match=r"^left=15|^tokens=12"):
            Matching(torch.randn(1, tokens, 8), left)


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
    monkeypatch.setattr(operators, "rotating_times", lambda *args, **kwargs: pytest.fail("timed"))
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
    seconds = rotating_times(candidates, 3, "cpu", graphs=True, progress=False)
    a, b = ([(name, 0), (name, 1)] for name in "ab")
    assert order == a + b + 3 * (a + a + b + b)  # once to prepare; then untimed and timed
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
