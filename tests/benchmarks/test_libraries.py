"""Peers of other libraries: what they are given, by modules of their real signatures; and where they are not
installed or wrong, a row says so."""

import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from benchmarks.harness import measure as measuring
from benchmarks.harness.measure import measure
from benchmarks.harness.options import Options
from benchmarks.suites import subjects
from diffratio_kernels.testing import budget

TINY = Options(tokens=16, width=32, heads=2, text=5, kept=(0.5,))
LINEARS = ("linear qkv", "linear out", "linear fc1", "linear fc2")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(budget, "worst", {})
    monkeypatch.setattr(measuring, "PASS_SECONDS", 0)
    monkeypatch.setattr("benchmarks.harness.timing.cache_bytes", lambda device: 1)


def rows_of(*names, library):
    found = [s for s in subjects("operator", TINY) if s.name in names]
    assert len(found) == len(names)
    own = [
        replace(s, candidates=tuple(c for c in s.candidates if c.name in (library, "torch"))) for s in found
    ]
    return [row for s in own for row in measure(s, "cpu", 1, False) if row["name"] == library]


@pytest.mark.parametrize(
    ("library", "package", "names"),
    [
        ("flashinfer", "flashinfer-python", ("route",)),
        ("quack", "quack-kernels", ("mlp", *LINEARS, "linear_gate_residual")),
    ],
)
def test_what_is_not_installed_is_a_row_that_is_no_failure(library, package, names, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr("benchmarks.peers.libraries.find_spec", lambda name: None)
    for row in rows_of(*names, library=library):
        assert row["refused"] == f"{package} is not installed" and "failed" not in row


def module(monkeypatch, name, **members):
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None, is_package=True)
    vars(made).update(members)
    monkeypatch.setitem(sys.modules, name, made)
    return made


class FlashInfer:
    """`flashinfer.top_k` as of 0.6: unsorted, ties as asked for, int64 places."""

    def __init__(self, small_first=True):
        self.small_first, self.asked = small_first, []

    def top_k(self, input, k, sorted=False, deterministic=False, tie_break=0):
        self.asked.append((input.dtype, tuple(input.shape), k, sorted, deterministic, tie_break))
        flipped = input if self.small_first else input.flip(1)
        values, places = flipped.sort(dim=1, descending=True, stable=True)
        places = places if self.small_first else input.shape[1] - 1 - places
        return values[:, :k].flip(1), places[:, :k].flip(1)


def test_top_k_is_asked_for_ties_by_our_rule(monkeypatch):
    fake = FlashInfer()
    module(monkeypatch, "flashinfer", top_k=fake.top_k)
    [row] = rows_of("route", library="flashinfer")
    assert row.get("refused") is None and row["kept"] == 0.5
    assert set(fake.asked) == {(torch.float32, (2, 16), 8, False, True, 1)}


def test_a_top_k_of_other_ties_is_not_timed(monkeypatch):
    module(monkeypatch, "flashinfer", top_k=FlashInfer(small_first=False).top_k)
    [row] = rows_of("route", library="flashinfer")
    assert row["refused"] == "flashinfer top_k: other tokens of tied scores are kept"


def test_a_top_k_that_knows_no_ties_is_refused(monkeypatch):
    module(monkeypatch, "flashinfer", top_k=lambda input, k, sorted=False: torch.topk(input, k))
    [row] = rows_of("route", library="flashinfer")
    assert "unexpected keyword argument 'deterministic'" in row["refused"]


class Quack:
    """QuACK's products by torch, with the arguments that ours are given; `wrong` scales what it returns."""

    def __init__(self, monkeypatch, wrong=1.0):
        self.wrong, self.calls = wrong, []
        module(monkeypatch, "quack")
        module(monkeypatch, "quack.epi_ops", RowVecLoad=lambda name: ("row", name))
        module(monkeypatch, "quack.gemm_epilogue", gemm_epilogue=self.gemm_epilogue)
        module(monkeypatch, "quack.gemm_interface", gemm=self.gemm, gemm_act=self.gemm_act)
        monkeypatch.delitem(sys.modules, "benchmarks.peers.quack", raising=False)

    def gemm(self, A, B, out=None, bias=None, alpha=1.0, out_dtype=None, tuned=True):
        self.calls.append("gemm")
        return (A @ B + bias) * self.wrong

    def gemm_act(self, A, B, C=None, bias=None, activation=None, *, store_preact=True, tuned=True):
        self.calls.append(activation)
        assert not store_preact
        return None, F.gelu(A @ B + bias, approximate="tanh")

    def gemm_epilogue(self, outputs=(), *, ops=None):
        assert ops == {"bias": ("row", "bias"), "gate": ("row", "gate")}

        def made(function):
            def call(A, B, C=None, *, out=None, store_d=True, tuned=True, **operands):
                assert A.dim() == B.dim() == C.dim() == 3 and B.stride(0) == 0
                self.calls.append(tuple(C.shape))
                given = {name: vector[:, None] for name, vector in operands.items()}
                return {"D": function(A @ B, C, **given)["D"] * self.wrong}

            return call

        return made


NAMES = ("mlp", *LINEARS, "linear_gate_residual")


def test_products_are_quacks_with_its_epilogues(monkeypatch):
    fake = Quack(monkeypatch)
    rows = rows_of(*NAMES, library="quack")
    assert len(rows) == len(NAMES) and all("refused" not in row for row in rows)
    assert {*fake.calls} == {"gemm", "gelu_tanh_approx", (2, 8, 32)}


def test_wrong_products_are_not_timed_and_are_no_failure_of_ours(monkeypatch):
    Quack(monkeypatch, wrong=1.01)
    rows = rows_of(*NAMES, library="quack")
    assert len(rows) == len(NAMES)
    assert all("over the budget" in row["refused"] and "failed" not in row for row in rows)
