"""Two bins of a block of every family as one computation, against two passes that are blended."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffratio import learn_ratios
from diffratio.routing import forward
from diffratio_kernels.blocks.joint import interleave, parted
from diffratio_kernels.blocks.routed import routed as one_bin
from diffratio_kernels.ops.two_bin_gelu.reference import small_rows
from diffratio_kernels.types import PackedRows

from .cases import BLOCKS
from .test_blocks import made, routed, run

RATIOS = {
    "between two bins": [0.56, 0.33],
    "on a bin": [0.6, 0.5],
    "on the smallest bin": [0.3, 0.3],
    "above nothing": [0.5, 0.2],
    "on nothing": [0.0, 0.0],
}
"""Of the two samples; on a bin the other one is computed for the gradient of the ratios alone."""
BINS = {"above nothing": (10, 0), "on nothing": (10, 0)}
"""Kept tenths to choose from, where they are not the default."""


def double(value):
    if isinstance(value, (tuple, list)):
        return type(value)(double(part) for part in value)
    return value.double() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def two_passes(call, rows, bins, scores, how, forward_only):
    """w F(x, large) + (1 - w) F(x, small), each bin by a pass of its own."""
    small = PackedRows(rows.index[small_rows(bins)], rows.tokens, bins.counts_small, bins.cu_seqlens_small)
    large = replace(rows, cu_seqlens=bins.cu_seqlens_large)
    alone, ends = replace(call, output=both_streams), []
    for bin in (large, small):
        if call.layout is not None:
            bin = pinned_behind(call.layout, bin, rows.key_lengths, large.cu_seqlens)
        ends.append(one_bin(alone, bin, *scores, how))
    return call.output(*(blended(*streams, bins.weight_large) for streams in zip(*ends, strict=True)))


def pinned_behind(layout, bin: PackedRows, keys: Tensor | None, cu_seqlens: Tensor) -> PackedRows:
    """The rows in the order of one bin: those that are kept always come last."""
    pinned = layout.pinned * (len(bin.counts) // len(layout.pinned))
    kept = [n - p for n, p in zip(bin.counts, pinned, strict=True)]
    in_front, behind = parted(bin.index, pinned, kept)
    keys = None if keys is None else keys - cu_seqlens.diff() + bin.cu_seqlens.diff()
    return replace(bin, index=interleave(behind, in_front, kept, pinned), key_lengths=keys)


def both_streams(image: Tensor, text: Tensor | None):
    return image, text


def blended(large: Tensor | None, small: Tensor | None, weight: Tensor) -> Tensor | None:
    if large is None or large is small:
        return large
    weight = weight.to(large.dtype)[:, None, None]
    return small + weight * (large - small)


def trained(name: str, ratios: str) -> dict[str, Tensor]:
    """What a training pass gives: both streams, and every gradient."""
    case = made(name)
    case.block.double()
    case.inputs = {key: double(value) for key, value in case.inputs.items()}
    x = case.inputs[case.tokens].requires_grad_()
    model = routed(case)
    table = learn_ratios(model, start=0.5, **({"bins": BINS[ratios]} if ratios in BINS else {}))
    with torch.no_grad():
        table.ratios.copy_(torch.tensor([RATIOS[ratios]]))
    image, text = run(case, model.train())
    found = {"image": image if case.valid is None else image[case.valid]}
    if text is not None:
        found["text"] = text if case.text_valid is None else text[case.text_valid]
    sum(out.square().sum() for out in found.values()).backward()
    named = dict(model.named_parameters())
    return found | {key: p.grad for key, p in named.items() if p.grad is not None} | {"tokens": x.grad}


SINGLE = (
    "anyflow",
    "auraflow",
    "chronoedit",
    "easyanimate_norm",
    "helios",
    "krea2",
    "mochi",
    "skyreels",
    "wan",
)
"""Blocks that norm or modulate in fp32, whatever they are given."""


def tolerance(name: str, dtype: torch.dtype) -> float:
    """Relative to the largest value of a tensor, at least 1."""
    if name.startswith("kandinsky"):  # turned heads are rounded to bf16
        return 1e-2
    if dtype == torch.float32:  # the router and its ratios
        return 1e-5
    return 1e-6 if name.startswith(SINGLE) else 1e-12


def pairs():
    """Every block between two bins and by one other table, in turn; the rest is in `make fuzz`."""
    first, *others = RATIOS
    for turn, name in enumerate(BLOCKS):
        for ratios in RATIOS:
            quick = ratios in (first, others[turn % len(others)])
            yield pytest.param(name, ratios, marks=[pytest.mark.fuzz] * (not quick))


@pytest.mark.parametrize(("name", "ratios"), pairs())
def test_two_bins_are_two_passes(name, ratios, monkeypatch):
    got = trained(name, ratios)
    monkeypatch.setattr(forward, "two_bin", two_passes)
    wanted = trained(name, ratios)
    assert got.keys() <= wanted.keys()
    for key, value in wanted.items():
        if key not in got:  # where nothing is kept what is not computed has no gradient
            assert ratios in BINS and not value.any(), key
            continue
        error = (got[key] - value).abs().max() / max(value.abs().max(), 1)
        assert error <= tolerance(name, value.dtype), key
