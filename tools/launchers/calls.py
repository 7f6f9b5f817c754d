"""Which calls of the Triton kernels are tested: one from every seed, and one typical call of each kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import count

import torch
from torch import Tensor

from diffratio_kernels._triton import stand_ins
from diffratio_kernels.testing.cases import on_device

from .activations import ACTIVATION
from .cases import OPERATORS
from .draw import Draw, Operator
from .heads import OF_HEADS
from .products import PRODUCTS
from .two_bin import TWO_BIN

FAMILIES = {
    "one bin": OPERATORS,
    "two bins": TWO_BIN,
    "products": PRODUCTS,
    "heads": OF_HEADS,
    "activations": ACTIVATION,
}
ALL = OPERATORS | TWO_BIN | PRODUCTS | OF_HEADS | ACTIVATION


def kernel_device() -> str:
    """Where Triton kernels run on this machine: on the GPU, else on the CPU in the interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def working_dtypes(device: str) -> tuple[torch.dtype, ...]:
    """What kernels compute in on a device; the interpreter's bf16 is wrong."""
    compiled = device == "cuda" or device in stand_ins
    return (torch.float32, torch.float16) + ((torch.bfloat16,) if compiled else ())


def random_call(
    seed: int, device: str = "cpu", again: int = 0, family: str = "one bin"
) -> tuple[str, torch.dtype, dict]:
    """An operator of a family, its working dtype and its arguments, all from the seed; B = 0, k = 0 and N = 1
    included.

    again: the same sizes and choices with other numbers.
    """
    operators = FAMILIES[family]
    name = list(operators)[seed % len(operators)]
    dtypes = working_dtypes(device)
    draw = Draw(seed, dtypes[seed // len(operators) % len(dtypes)], again)
    return name, draw.dtype, on_device(operators[name].draw(draw), device)


VARIANTS: dict[str, Callable[[dict], bool]] = {
    "router_logits": lambda a: a["router_bias"] is not None and a["grad_logits"].numel() > 64,
    "select, one bin": lambda a: a["keep_small"] is None,
    "select, two bins": lambda a: a["keep_small"] is not None and sum(a["keep_small"]) < sum(a["keep"]),
    "gather_adaln": lambda a: a["grad_rows"] is not None and _plain(a),
    "gather_adaln, groups": lambda a: a["grad_rows"] is not None and a["norm"] == "rms" and _shared(a),
    "adaln": lambda a: _plain(a),
    "adaln, groups": lambda a: _shared(a),
    "gate_residual": lambda a: _plain(a),
    "gate_residual, normed": lambda a: a["norm_bias"] is not None and _shared(a),
    "attention, self": lambda a: (
        a["queries"] is a["keys"] and a["query"].shape[1:] == a["key"].shape[1:] == (2, 72)
    ),
    "attention, shared keys": lambda a: (
        a["queries"] is a["keys"] and a["query"].shape[1] == 6 and 64 < a["query"].shape[2] < 128
    ),
    "attention, cross": lambda a: (
        0 in (a["key_lengths"] or []) and max(a["key_lengths"]) > 0 and a["query"].shape[1] == 2
    ),
    "linear_gelu": lambda a: a["bias"] is not None and a["keep_pre"] and a["rows"].shape[0] == 33,
    "scatter_rescale, mlp": lambda a: _plain(a),
    "scatter_rescale, residual": lambda a: _plain(a),
    "scatter_rescale, output": lambda a: _plain(a),
    "scatter_rescale, none": lambda a: _plain(a),
    "scatter_rescale, mlp, normed": lambda a: a["norm_bias"] is not None and _shared(a),
    "linear_gate_residual": lambda a: (
        a["gated"] and a["bias"] is not None and a["hidden"].shape[1] in (24, 40)
    ),
    "linear_scatter, mlp": lambda a: a["bias"] is not None and a["weight"].shape == (40, 40),
    "activation, gated": lambda a: a["value"] is not None and a["places"] is not None,
    "activation, alone": lambda a: a["value"] is None and a["places"] is not None,
    "two_bin_gelu": lambda a: a["pre"].shape[1] == 129,
    "two_bin_blend, residual": lambda a: True,
    "two_bin_attention, shared keys": lambda a: (
        a["query"].shape[1] == 6 and max(a["keep_small"]) > 17 and max(a["keep_large"]) <= 40
    ),
    "two_bin_attention": lambda a: (
        a["query"].shape[1:] == a["key"].shape[1:] == (2, 72)
        and max(a["keep_small"]) > 32
        and max(a["keep_large"]) <= 50
    ),
}
"""Kinds of typical calls: an operator, and what else must hold of its arguments."""


def _plain(arguments: dict) -> bool:
    """Whether a call is as PixArt's: layer norms without weights, a modulation for each sample."""
    return arguments["groups"] is None and arguments["norm"] in ("layer", "none")


def _shared(arguments: dict) -> bool:
    """Whether tokens share rows of the modulation, and not with their samples."""
    groups = arguments["groups"]
    return groups is not None and 2 < len(groups.unique()) < groups.numel()


def typical_call(kind: str, dtype: torch.dtype, device: str = "cpu") -> tuple[Operator, dict]:
    """An operator and its arguments, the same every time: several rows of each of several samples."""
    name, _, variant = kind.partition(", ")
    arguments = ALL[name].draw(Draw(_typical_seed(kind), dtype))
    if "rescale" in arguments:
        arguments["rescale"] = variant.partition(", ")[0]
    return ALL[name], on_device(arguments, device)


FAR = {
    "gather_adaln": 1008,
    "gather_adaln, groups": 1606,
    "adaln": 1008,
    "adaln, groups": 1413,
    "gate_residual, normed": 9397,
    "scatter_rescale, mlp, normed": 10005,
    "two_bin_gelu": 4436,
    "two_bin_blend, residual": 3083,
    "two_bin_attention, shared keys": 857,
    "two_bin_attention": 40454,
}
"""Where the search for rare kinds begins: their first seed, before which it would draw for seconds."""


@cache
def _typical_seed(kind: str) -> int:
    draw = ALL[kind.partition(",")[0]].draw
    calls = ((seed, draw(Draw(seed, torch.float32))) for seed in count(FAR.get(kind, 0)))
    return next(seed for seed, call in calls if _is_typical(call) and VARIANTS[kind](call))


def _is_typical(arguments: dict) -> bool:
    tables = [t for t in arguments.values() if isinstance(t, Tensor) and t.dim() >= 2]
    if any(min(t.shape) < 2 for t in tables if t.dim() == 2) or any(t.shape[0] < 2 for t in tables):
        return False
    if "keep_large" in arguments:
        bins = list(zip(arguments["keep_small"], arguments["keep_large"], strict=True))
        if len(bins) != 2 or not all(1 < small < large for small, large in bins):
            return False
    if "queries" in arguments:
        queries, keys = arguments["queries"], arguments["keys"]
        return len(queries) == 2 and min(queries) > 1 and min(keys) > 1 and 16 < max(queries) <= 40
    if "keep" in arguments:
        return min(arguments["keep"]) > 1 and arguments["logits"].shape[1] > 16
    if "index" not in arguments:
        return True
    tokens = arguments["tokens"] if "tokens" in arguments else arguments["x"].shape[1]
    by_sample = arguments.get("groups")
    if by_sample is None:
        by_sample = next(arguments[key] for key in ("shift", "gate") if key in arguments)
    samples = by_sample.shape[0]
    sample_of = arguments["index"] // tokens
    kept = sample_of.bincount(minlength=samples)
    if not torch.equal(sample_of, sample_of.sort().values):
        return False
    return samples == 2 and 32 < tokens <= 40 and 2 < kept.min() < 10 and kept.max() > 32
