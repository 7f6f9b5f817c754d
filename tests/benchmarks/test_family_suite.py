"""Blocks of every family: each runs, counts what torch counts, and is not timed where it is wrong."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import measure as measuring
from benchmarks.harness.measure import measure
from benchmarks.harness.options import Options
from benchmarks.suites import subjects
from benchmarks.suites.family import FAMILIES, FamilyCase
from diffratio_kernels.blocks.routed import routed

TINY = Options(tokens=24, width=64, heads=4, text=5, kept=(1.0, 0.5))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(measuring, "PASS_SECONDS", 0)
    monkeypatch.setattr("benchmarks.harness.timing.cache_bytes", lambda device: 1)


def rows_of(name, options=TINY):
    [subject] = subjects("family", replace(options, families=(name,)))
    return measure(subject, "cpu", 1, progress=False)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_block_beside_the_dense_one(name):
    rows = rows_of(name)
    assert [(row["name"], row["kept"]) for row in rows] == [
        ("diffusers dense", 1.0), ("diffratio", 1.0), ("diffratio", 0.5)
    ]  # fmt: skip
    assert all(row["of_baseline"] > 0 < row["peak_bytes"] for row in rows)
    case = FamilyCase(FAMILIES[name], TINY)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        case.dense()
    assert rows[0]["flops"] == counter.get_total_flops()
    assert rows[2]["flops"] < rows[0]["flops"] < rows[1]["flops"]


@pytest.mark.parametrize("name", ["flux-double", "z-image"])
def test_a_wrong_block_is_not_timed(name, monkeypatch):
    def wrong(call, *args):
        call.image.tokens = call.image.tokens * 1.01
        return routed(call, *args)

    monkeypatch.setattr("diffratio.routing.forward.routed", wrong)
    refused = {row["kept"]: row["refused"] for row in rows_of(name) if "failed" in row}
    assert refused.keys() == {1.0, 0.5}
    assert all("differs from eager steps by" in reason for reason in refused.values())


def test_with_all_tokens_it_must_be_the_dense_block(monkeypatch):
    dense = FamilyCase.dense
    monkeypatch.setattr(FamilyCase, "dense", lambda case: dense(case) * 1.01)
    refused = {row["kept"]: row["refused"] for row in rows_of("wan") if "failed" in row}
    assert refused.keys() == {1.0} and "differs from the dense block by" in refused[1.0]


def test_a_family_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"^family='sana' must be one of flux-double, "):
        next(iter(subjects("family", replace(TINY, families=("sana",)))))
