"""Which attention "auto" runs on a GPU, and which products are one kernel of ours: measured ratios decide.

The table (_triton/tiles.json) holds our seconds as a part of each library's. A ratio holds for shapes within
a factor of 2 of its own; the nearest one counts. Below 1 ours is taken; below 0.9 where it is predicted, or
was measured on another architecture. Where there is none, products and attention of equal samples are the
library's; ours is attention of samples that differ, whose padding torch would compute, and of two bins, for
which a library is called twice. With a gradient nothing is looked up: ours is taken, whose bits are the same
on every run.
"""

from collections.abc import Iterator
from functools import lru_cache
from math import inf, log
from operator import itemgetter
from typing import NamedTuple

import torch

from ._backends import BACKENDS, unavailable_reason
from ._triton import tiles

HALF = (torch.float16, torch.bfloat16)
KINDS = ("self", "cross", "ragged", "two_bins")
"""Attention of equal samples, with as many keys as queries or not; of samples that differ in either; of two
nested sets."""
OURS_UNMEASURED = ("ragged", "two_bins")
NEAR = log(2) + 1e-9
"""How far a ratio reaches, in the logarithm of each size."""
PREDICTED = 0.9
"""Ours must be so much faster where nobody measured it on this architecture."""
WIDEST = {"cudnn": 128, "varlen": 256, "flash_attn": 256}
"""Heads that libraries take at most; `sdpa` takes all."""


class Attention(NamedTuple):
    """A call of attention: all that the choice depends on."""

    kind: str
    """Of KINDS."""
    queries: int
    """Of the longest sample; with two bins its rows in the large set."""
    keys: int
    """The same; with two bins its rows in the small set."""
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    grouped: bool
    """Whether key and value have fewer heads."""
    padded: bool
    """Whether samples differ, so that a library that knows none of it computes padding."""
    lengths: bool
    """Whether key_lengths are given."""


class Choice(NamedTuple):
    """What runs, and why."""

    backend: str
    reason: str


@lru_cache(maxsize=4096)
def attention_choice(call: Attention) -> Choice:
    """The backend of "auto" on a GPU, without a gradient."""
    if call.dtype not in HALF:
        return Choice("sdpa", f"{str(call.dtype).removeprefix('torch.')}: the library's")
    able = [name for name in BACKENDS["attention"][:-1] if _takes(name, call)]
    entry = _nearest(call)
    known = {name: ratio for name, ratio in entry.of.items() if name in able} if entry else {}
    if known:
        library = max(known, key=known.__getitem__)  # the fastest
        ours = "triton" in able and known[library] < _limit(entry.source, True)
        why = f"{entry.source} {known[library]:.2f} of {library} on sm_{entry.architecture}"
        return Choice("triton" if ours else library, why)
    ours = "triton" in able and call.kind in OURS_UNMEASURED
    return Choice("triton", "not measured: ours") if ours else Choice("sdpa", "not measured: the library's")


@lru_cache(maxsize=4096)
def takes_ours(
    kernel: str, dtype: torch.dtype, device: torch.device, columns: int, rows: int, inner: int
) -> bool:
    """Whether a product of [rows, inner] with [inner, columns] on a GPU runs as one Triton kernel with its
    epilogue: where it can, in half precision, and is faster."""
    if dtype not in HALF or unavailable_reason("triton", "cuda"):
        return False
    entry = tiles.nearest(kernel, tiles.architecture(device), columns, rows, inner)
    near = _distance((entry.columns, columns), (entry.rows, rows), (entry.inner, inner)) < inf
    return near and entry.of_library < _limit(entry.source, entry.architecture == tiles.capability(device))


def attention_choices(device: torch.device) -> Iterator[tuple[str, Choice]]:
    """What was measured on this GPU, then what is taken elsewhere: for the eye."""
    measured = [e for e in tiles.ATTENTION_RATIOS if e.architecture == tiles.capability(device)]
    shapes = [(e.kind, e.queries, e.keys, e.head_dim) for e in measured]
    for kind, *sizes in shapes + [(kind, 0, 0, 0) for kind in KINDS]:
        facts = torch.bfloat16, device, False, kind == "ragged", False
        where = "{} x {}, heads of {}".format(*sizes) if sizes[-1] else "other shapes"
        yield f"{kind}, {where}", attention_choice(Attention(kind, *sizes, *facts))


def _takes(backend: str, call: Attention) -> bool:
    """Whether a backend can run here and has these arguments."""
    if backend == "triton":
        two_bins = call.kind == "two_bins"
        widest = tiles.LARGEST_HEAD_DIM_OF_TWO_BINS if two_bins else tiles.LARGEST_HEAD_DIM
    else:
        widest = WIDEST.get(backend, call.head_dim)
    if call.head_dim > widest or call.lengths and backend in ("varlen", "flash_attn"):
        return False
    if call.padded and backend == "cudnn":  # it takes some masks only
        return False
    return unavailable_reason(backend, "cuda", call.dtype) is None


def _nearest(call: Attention) -> tiles.AttentionRatio | None:
    """The ratio that holds for a call, None where there is none."""
    if call.grouped or call.padded and call.kind == "two_bins":  # nothing of the kind is measured
        return None
    about = call.kind, call.head_dim, tiles.capability(call.device)
    found = [
        (_distance((entry.queries, call.queries), (entry.keys, call.keys)), entry)
        for entry in tiles.ATTENTION_RATIOS
        if (entry.kind, entry.head_dim, entry.architecture) == about
    ]
    distance, entry = min(found, key=itemgetter(0), default=(inf, None))
    return None if distance == inf else entry


def _distance(*sizes: tuple[int, int]) -> float:
    """Between shapes, size by size; infinite where one is further than a ratio reaches."""
    each = [abs(log(known / max(asked, 1))) for known, asked in sizes]
    return inf if max(each) > NEAR else sum(each)


def _limit(source: str, here: bool) -> float:
    """What a ratio must be below, by where it is from and whether that is this architecture."""
    return 1.0 if source == "measured" and here else PREDICTED
