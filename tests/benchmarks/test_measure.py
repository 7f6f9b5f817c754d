"""From a subject to rows: candidates take turns, no fault is timed, what does not run has a reason."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from benchmarks.harness import measure as measuring
from benchmarks.harness.measure import measure
from benchmarks.harness.subject import Candidate, Subject
from benchmarks.harness.timing import cache_bytes, passes_of, rotations
from diffratio.evaluation.latency import rotating_times
from diffratio_kernels._backends import NotAvailable


def subject(*candidates):
    return Subject("op", "add", torch.float32, {"batch": 1}, lambda seed: torch.ones(2), 8, candidates)


def fail(case):
    raise RuntimeError("no such device\nmore")


def test_a_candidate_that_does_not_run_is_a_row_with_the_reason():
    able, unable = Candidate("able", lambda x: x + 1), Candidate("unable", fail)
    rows = measure(subject(able, unable), "cpu", 2, progress=False)
    timed, refused = sorted(rows, key=lambda row: row["name"])
    assert timed["name"] == "able" and timed["of_baseline"] == 1.0 and "refused" not in timed
    assert refused["refused"] == "no such device" and "of_baseline" not in refused


def test_without_the_baseline_the_others_have_times_but_no_ratios():
    able, unable = Candidate("able", lambda x: x + 1), Candidate("unable", fail)
    refused, timed = measure(subject(unable, able), "cpu", 2, progress=False)
    assert refused["refused"] == "no such device"
    assert timed["name"] == "able" and timed["seconds"] > 0 and "of_baseline" not in timed
    [alone] = measure(subject(unable), "cpu", 2, progress=False)
    assert alone["refused"] == "no such device"


def test_a_row_says_what_was_measured():
    seen = {}
    one = Candidate(
        "one",
        lambda x: seen.update(skipped=0.5),
        kept=0.5,
        flops=3,
        moved=4,
        about={"kept_small": 0.4},
        seen=seen,
    )
    [row] = measure(subject(one), "cpu", 3, progress=False)
    assert row | {"seconds": 0, "spread": 0, "peak_bytes": 0} == {
        "suite": "op", "subject": "add", "dtype": "float32", "batch": 1, "name": "one", "kept": 0.5,
        "kept_small": 0.4, "flops": 3, "bytes": 4, "mode": "eager", "cache": "cold", "rounds": 3,
        "of_baseline": 1.0, "skipped": 0.5, "seconds": 0, "spread": 0, "peak_bytes": 0,
    }  # fmt: skip
    assert row["seconds"] > 0


def test_short_calls_are_repeated(monkeypatch):
    calls = []
    measure(subject(Candidate("short", calls.append)), "cpu", 3, progress=False)
    short = len(calls)
    monkeypatch.setattr(measuring, "PASS_SECONDS", 0)
    measure(subject(Candidate("short", calls.append)), "cpu", 3, progress=False)
    assert short > 16 * 16 and len(calls) - short < 8 * 16 + 4


def test_no_compiled_peer_runs_eagerly_because_others_were_compiled_before():
    compiled = CompileCounter()
    run = torch.compile(lambda x: x + 1, backend=compiled, dynamic=False)
    for size in range(2, 12):
        one = replace(subject(Candidate("compiled", run)), make=lambda seed, size=size: torch.ones(size))
        measure(one, "cpu", 1, progress=False)
    assert compiled.frame_count == 10


def test_what_is_outside_the_budget_is_not_timed_and_the_others_are():
    def wrong(case):
        raise AssertionError("over the budget")

    able, bad = Candidate("able", lambda x: x + 1), Candidate("bad", lambda x: x, verify=wrong)
    refused, timed = measure(subject(able, bad), "cpu", 2, progress=False)
    assert (timed["name"], timed["of_baseline"]) == ("able", 1.0)
    assert refused["name"] == "bad" and refused["refused"] == "over the budget"
    assert not {"seconds", "of_baseline", "spread"} & refused.keys()


@pytest.mark.parametrize(
    ("ours", "error", "failed"),
    [
        (True, AssertionError("over the budget"), True),
        (True, KeyError("no such tile"), True),
        (True, NotAvailable("no CUDA device"), False),
        (True, torch.OutOfMemoryError("no room"), False),
        (False, AssertionError("over the budget"), False),
        (False, RuntimeError("no kernel for this shape"), False),
    ],
)
def test_a_refusal_is_a_failure_where_a_kernel_of_ours_could_have_run(ours, error, failed):
    def verify(case):
        raise error

    one = Candidate("one", lambda x: x, verify=verify, ours=ours)
    [row] = measure(subject(one), "cpu", 2, progress=False)
    assert row.get("failed", False) == failed and row["refused"] == str(error)


def test_a_case_that_does_not_fit_is_refused_for_all():
    def full(seed):
        raise torch.OutOfMemoryError("no room\nfor it")

    one = replace(subject(Candidate("able", lambda x: x + 1)), make=full)
    [row] = measure(one, "cpu", 2, progress=False)
    assert row["name"] == "able" and row["refused"] == "no room"


def test_memory_that_a_graph_holds_is_not_shown():
    able, held = Candidate("able", lambda x: x + 1), Candidate("held", lambda x: x + 1, allocates=False)
    first, second = measure(subject(able, held), "cpu", 2, progress=False)
    assert first["peak_bytes"] > 0 and "peak_bytes" not in second


def test_candidates_take_turns_over_all_their_buffers():
    order = []
    lists = {name: [lambda n=name, i=i: order.append((n, i)) for i in range(2)] for name in "ab"}
    passes, refused = passes_of(lists, False, ())
    seconds = rotating_times(passes, 2, 3, "cpu", progress=False)
    a, b = ([(name, 0), (name, 1)] for name in "ab")
    assert order == a + b + 3 * (a + a + b + b)  # once to prepare; then untimed and timed
    assert set(seconds) == {"a", "b"} and not refused


def test_cases_outgrow_the_last_cache(monkeypatch):
    assert cache_bytes("cpu") > 0
    monkeypatch.setattr("benchmarks.harness.timing.cache_bytes", lambda device: 100)
    assert [rotations(size, "cpu") for size in (1, 50, 1000)] == [16, 6, 2]


def test_a_failed_preparation_does_not_end_the_others():
    passes, refused = passes_of({"a": [lambda: fail(0)], "b": [lambda: None]}, False, (RuntimeError,))
    assert list(passes) == ["b"] and str(refused["a"]).startswith("no such device")
