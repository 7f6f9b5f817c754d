"""Blocks on CPU tensors that go where those on a GPU do, as far as the launch, which is a recorder.

This package's Python runs up to the launch of a Triton kernel, the call into the CUDA C++ library or into one
of torch's products; other calls of torch run on a few elements. What is left is what a block costs the
host."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from diffusers import PixArtTransformer2DModel
from torch import Tensor

from diffratio import DiffRatioConfig, apply_diffratio
from diffratio.progress import progress_bar
from diffratio_kernels import _backends, _triton, mod_block, two_bin_block
from diffratio_kernels._register import register
from diffratio_kernels.ops import cuda
from diffratio_kernels.testing.cases import TwoBinCase

CALLS = 5


def microseconds(call: Callable[[], object], times: int = CALLS) -> float:
    """Of the processor in one call: others may share it."""
    start = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - start) / times * 1e6


class Recorder:
    """Counts launches, and leaves a selection that may be read."""

    def __init__(self):
        self.count, self._products = 0, {}
        self._select = _backends.kernels("route", "triton")._topk_select

    def __call__(self, kernel, grid, args, options) -> None:
        """In the place of a Triton kernel."""
        self.count += 1
        if kernel is self._select:
            args[4].zero_()

    def __getattr__(self, name: str) -> Callable:
        """In the place of an operator of the CUDA C++ library."""

        def call(*args) -> None:
            self.count += 1
            if name == "topk_select":
                args[4].zero_()

        setattr(self, name, call)
        return call

    def product(self, bias, rows: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        """In the place of `torch.addmm`."""
        self.count += 1
        return out

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """In the place of `F.linear`."""
        self.count += 1
        key = rows.shape, weight.shape
        if key not in self._products:
            self._products[key] = rows.new_empty(*rows.shape[:-1], weight.shape[0])
        return self._products[key]


@contextmanager
def recorded() -> Iterator[Recorder]:
    """Inside, "auto" is on CPU tensors what it is on a GPU, without the libraries that need one: nobody
    measured there, so that attention is ours and products are torch's."""
    recorder, plain = Recorder(), _backends.unavailable_reason

    def reason(backend: str, *where) -> str | None:
        return None if backend == "cuda" else plain(backend, *where)

    with (
        mock.patch.dict(_triton.stand_ins, {"cpu": recorder}),
        mock.patch.dict(_backends._AUTO, {"cpu": _backends._AUTO["cuda"]}),
        mock.patch.object(_backends, "unavailable_reason", reason),
        mock.patch.object(cuda, "operators", recorder),
        mock.patch.object(torch, "addmm", recorder.product),
        mock.patch.object(F, "linear", recorder.linear),
    ):
        yield recorder


def nothing() -> Callable[[], None]:
    """A call of an operator that does nothing, registered as ours are."""
    if not hasattr(torch.ops.diffratio, "nothing"):
        register("nothing(Tensor x) -> ()", _nothing, _nothing, _nothing)
    x = torch.zeros(1)
    return lambda: torch.ops.diffratio.nothing(x)


def _nothing(x: Tensor) -> None:
    pass


def pixart(layers: int, dtype: torch.dtype) -> tuple[PixArtTransformer2DModel, dict[str, Tensor]]:
    """A routed PixArt of tiny width (keep 1/2), and what its blocks are given."""
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=layers, sample_size=8, patch_size=2,
        cross_attention_dim=32, caption_channels=24, norm_type="ada_norm_single",
    ).eval().to(dtype)  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the routers are untrained")
        apply_diffratio(model, DiffRatioConfig(0.5))
    shapes = {"hidden_states": (1, 16, 32), "encoder_hidden_states": (1, 7, 32), "timestep": (1, 6 * 32)}
    return model, {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}


def calls() -> dict[str, Callable[[], object]]:
    """Blocks of two samples in bf16, half of their tokens kept, with cross-attention."""
    two_bins = TwoBinCase(seed=0, keep=(12,), dtype=torch.bfloat16).arguments()
    one_bin = two_bins | {"keep": two_bins["keep_large"]}
    for name in ("keep_small", "keep_large", "weight_large"):
        del one_bin[name]
    model, given = pixart(1, torch.bfloat16)
    (block,) = model.transformer_blocks
    return {
        "mod_block": lambda: mod_block(**one_bin),
        "mod_block on Triton": lambda: mod_block(**one_bin, backend="triton"),
        "two_bin_block": lambda: two_bin_block(**two_bins),
        "two_bin_block on Triton": lambda: two_bin_block(**two_bins, backend="triton"),
        "block of a patched PixArt": lambda: block(**given),
    }


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Block -> microseconds of a call, how many of `nothing` these are, and its launches: medians over
    rounds, in which all take turns."""
    blocks, found = {"nothing": nothing()} | calls(), {}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in blocks}
    with recorded() as recorder:
        for name, call in blocks.items():
            before = recorder.count
            call()
            found[name] = {"launches": recorder.count - before}
        for _ in progress_bar(range(rounds), desc="launches", unit="round"):
            for name, call in blocks.items():
                empty = microseconds(blocks["nothing"], 20 * CALLS)
                own = microseconds(call)
                times[name].append((own, own / empty))
    for name, values in times.items():
        us, multiples = (statistics.median(each) for each in zip(*values, strict=True))
        found[name] |= {"us": us, "empty calls": multiples}
    return found
