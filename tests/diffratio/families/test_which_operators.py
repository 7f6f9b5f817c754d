"""Which operators run in the blocks of the families that people use most, and that torch computes no norm,
rotation or attention beside them."""

import importlib
from collections import Counter
from types import FunctionType

import pytest
import torch
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

from diffratio import learn_ratios
from diffratio_kernels._backends import BACKENDS

from .test_blocks import made, routed, run

ROUTE = {"router_logits": 1, "select": 1}
ONE = ROUTE | {"gather_adaln": 1, "qk_norm_rope": 1, "attention": 1, "adaln": 1, "scatter_rescale": 1}
"""One stream."""
JOINT = ONE | {"gather_adaln": 2, "qk_norm_rope": 2, "adaln": 2}
"""Two streams: attention is of both."""
PARALLEL = {name: count for name, count in ONE.items() if name != "adaln"} | {"activation": 1}
"""One stream with the MLP beside the attention."""
OPERATORS = {
    "flux_double": JOINT,
    "flux_single": PARALLEL,
    "z_image": ONE | {"gate_residual": 1, "activation": 1},
    "qwen_image_masked": JOINT,
    "wan": ONE | {"attention": 2, "adaln": 3},
    "flux2_double": JOINT | {"activation": 2},
    "flux2_single": PARALLEL,
    "sd3_joint": JOINT,
    "sd35_dual": JOINT | {"gather_adaln": 3, "qk_norm_rope": 3, "attention": 2},
}
"""Block -> launchers of one pass, and how often each runs."""


def both(one, blends=1, gelus=0, **others):
    """One pass over the rows of both bins: attention of both, and what the streams and their MLPs end in."""
    once = {name: count for name, count in one.items() if name not in ("attention", "scatter_rescale")}
    ends = {"two_bin_attention": 1, "two_bin_blend": blends, "two_bin_gelu": gelus}
    return {name: count for name, count in (once | ends | others).items() if count}


TWO_BINS = {
    "flux_double": both(JOINT, 2, 2),
    "flux_single": both(PARALLEL),
    "z_image": both(ONE, gate_residual=1, activation=1),
    "qwen_image_masked": both(JOINT, 2, 2, two_bin_attention=0, attention=2),
    "wan": both(ONE, 1, 1, attention=1, adaln=3),
    "flux2_double": both(JOINT, 2, activation=2),
    "flux2_single": both(PARALLEL),
    "sd3_joint": both(JOINT, 2, 2),
    "sd35_dual": both(JOINT, 2, 2, gather_adaln=4, qk_norm_rope=4, attention=2),
}
"""The same while ratios are learned. SD3.5's second attention runs once for each bin, and so does attention
to a text that is masked."""
HELPERS = ("small_rows", "blend", "places_of")
"""Functions of references that other steps call: rows of the small bin and their places, blends of MLPs."""
NORMS = {"native_layer_norm", "_fused_rms_norm", "rsqrt", "var_mean", "var"}
NORMS_BY_TORCH = {"one bin": {"wan"}, "two bins": {"wan", "z_image"}}
"""Of the text's keys, which `cache_text` keeps; of the MLP's branch before two bins are blended."""
PINNED = "flux_single", "z_image", "flux2_single"
"""Blocks whose text is among the tokens: logits are of all, the selection is among those of the image."""
ATTENTION = {"bmm", "baddbmm", "_softmax", "_safe_softmax", "_scaled_dot_product"}
ROTATION = {"sin", "cos", "neg", "view_as_complex", "polar"}


class Seen(TorchDispatchMode):
    """Launchers that run, operators of ours that are dispatched, and what torch computes beside them."""

    def __init__(self):
        super().__init__()
        self.launched, self.reference, self.dispatched, self.beside = Counter(), set(), Counter(), set()
        self._inside = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        namespace, name = func.namespace, func.__name__.partition(".")[0]
        if namespace == "diffratio":
            self.dispatched[name] += 1
        elif not self._inside:
            self.beside.add(name)
        return func(*args, **(kwargs or {}))

    def watch(self, monkeypatch):
        """Every function that a backend gives: what it computes is its own."""
        for folder, backends in BACKENDS.items():
            for backend in backends:
                try:
                    module = importlib.import_module(f"diffratio_kernels.ops.{folder}.{backend}")
                except ImportError:
                    continue  # a library's, or two passes of one
                for name, function in list(vars(module).items()):
                    own = isinstance(function, FunctionType) and function.__module__ == module.__name__
                    if own and not name.startswith("_") and name not in HELPERS:
                        monkeypatch.setattr(module, name, self._watched(name, backend, function))
        return self

    def _watched(self, name, backend, function):
        def call(*args, **kwargs):
            if self._inside:
                return function(*args, **kwargs)
            self.launched[name] += 1
            self.reference |= {name} if backend == "reference" else set()
            self._inside = True
            try:
                return function(*args, **kwargs)
            finally:
                self._inside = False

        return call

    def torch_computes(self, names):
        return {one for one in self.beside if one.startswith(tuple(names))}


def seen(monkeypatch, case, model, training):
    model.train(training)
    with monkeypatch.context() as patch, torch.set_grad_enabled(training), Seen().watch(patch) as mode:
        run(case, model)
    return mode


def assert_ours(name, mode, bins):
    assert mode.reference == set()
    assert mode.torch_computes(ATTENTION) == mode.torch_computes(ROTATION) == set()
    assert bool(mode.torch_computes(NORMS)) == (name in NORMS_BY_TORCH[bins])


def operators(name, launched) -> dict:
    """The operators that autograd sees: attention is torch's own on a CPU, the reference needs none."""
    hidden = "attention", "two_bin_attention", "router_logits", "select"
    return {"route": 2 if name in PINNED else 1} | {
        op: count for op, count in launched.items() if op not in hidden
    }


@pytest.mark.parametrize("name", OPERATORS)
def test_inference_launches_kernels_and_nothing_is_dispatched(name, monkeypatch):
    case = made(name)
    model, seen, dispatched = routed(case), Seen(), []
    for gradients in (False, True):
        with monkeypatch.context() as patch, torch.set_grad_enabled(gradients), profile() as profiled:
            run(case, model) if gradients else run(case, seen.watch(patch) and model)
        dispatched.append({e.name for e in profiled.events() if e.name.startswith("diffratio::")})
    assert seen.launched == OPERATORS[name] and seen.reference == set()
    assert dispatched[0] == set() and dispatched[1] != set()


@pytest.mark.parametrize("name", OPERATORS)
def test_training_runs_the_same_by_operators(name, monkeypatch):
    case = made(name)
    mode = seen(monkeypatch, case, routed(case), training=True)
    assert mode.launched == OPERATORS[name]
    assert mode.dispatched == operators(name, OPERATORS[name])
    assert_ours(name, mode, "one bin")


@pytest.mark.parametrize("name", OPERATORS)
def test_two_bins_are_one_pass_behind_one_selection(name, monkeypatch):
    case = made(name)
    model = routed(case)
    learn_ratios(model, start=0.55)
    mode = seen(monkeypatch, case, model, training=True)
    assert mode.launched == TWO_BINS[name]
    assert mode.dispatched == operators(name, TWO_BINS[name])
    assert_ours(name, mode, "two bins")


def test_a_fallback_is_seen(monkeypatch):
    """The control: norms of a block that are modules, and rows by the reference."""
    case = made("flux_double")
    case.block.attn.norm_q.register_forward_hook(lambda *_: None)
    mode = seen(monkeypatch, case, routed(case), training=False)
    assert mode.torch_computes(NORMS)
