"""Figure 3: what it costs to choose tokens, by a router and by ToMe's matching, and what then is saved.

The paper prints no numbers of it. Its claim: a router's savings follow its ratio, ToMe's do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from diffratio.baselines.tome import Matching
from diffratio.evaluation.flops import block_flops
from diffratio.evaluation.flops.baselines import block_kept
from diffratio_kernels import kept_tokens, route

from ..harness.measure import measure
from ..harness.options import Options
from ..harness.subject import Candidate, Subject
from ..suites.block import Changed, Routed
from ..suites.case import BlockCase, Cases, dense_name
from .steps import DTYPES, Sizes

SIDES = (0.5, 1, 2)
"""Sides of the picture, in those of a picture of 512 pixels."""
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class Figure:
    """All token counts in one dtype; the batch is the smallest of the tables, under guidance."""

    dtype: str
    sizes: Sizes

    @property
    def name(self) -> str:
        return f"figure3-{self.dtype}"

    @property
    def works(self) -> tuple[int, ...]:
        """Token counts."""
        return tuple(int(part * self.sizes.side) ** 2 for part in SIDES)

    def options(self, tokens: int, device: str) -> Options:
        own = self.sizes
        return Options(
            device=device, dtype=DTYPES[self.dtype], batch=2 * own.images[0], tokens=tokens, width=own.width,
            heads=own.heads, text=own.text,
        )  # fmt: skip

    @property
    def flops(self) -> float:
        """Of one run of every candidate at every token count."""
        return sum(c.flops for tokens in self.works for c in candidates(self.options(tokens, "cpu")))

    def rows(self, tokens: int, device: str, rounds: int, progress: bool) -> Iterator[dict]:
        """Rows of a token count as `diffratio bench` has them, of calls that find nothing in the cache."""
        options = self.options(tokens, device)
        subject = Subject(
            "figure3", f"{tokens} tokens", options.dtype, options.shape(), Cases(BlockCase, options),
            options.weight_bytes() + 2 * options.row_bytes(), tuple(candidates(options)),
        )  # fmt: skip
        for row in measure(subject, device, rounds, progress, modes=("eager",)):
            if row.get("cache") != "warm":
                yield row | {"step": self.name, "system": f"{tokens} tokens, {row['name']}"}


def candidates(options: Options) -> Iterator[Candidate]:
    """The dense block; what chooses a fifth; whole blocks by ratio."""
    dense = options.batch * block_flops(options.transformer, None, cache_text_kv=False).total()
    yield Candidate(dense_name(), BlockCase.dense, flops=dense)
    yield Candidate("router", Choosing(0.2).by_router, kept=0.8, ours=True)
    yield Candidate("ToMe's matching", Choosing(0.2).by_matching, kept=0.8)
    for ratio in RATIOS:
        kept = round(1 - ratio, 1)
        keep = kept_tokens(round(10 * kept), options.tokens)
        ours, work = Routed(keep), options.batch * block_flops(options.transformer, keep).total()
        yield Candidate("router, block", ours.block, ours.verify, kept, work, ours=True)
        for merge in ("mlp", "all"):
            name = f"tome:{merge}:{ratio:g}"
            left, method = block_kept(name, options.transformer)
            work = options.batch * block_flops(options.transformer, left, method=method).total()
            yield Candidate(f"ToMe {merge}, block", Changed(name), kept=kept, flops=work)


@dataclass(frozen=True)
class Choosing:
    """The choice alone, of a case's tokens."""

    ratio: float

    def by_router(self, case: BlockCase) -> Tensor:
        """Logits and the kept rows."""
        keep = kept_tokens(round(10 - 10 * self.ratio), case.tokens)
        return route(case.x, case.router_weight, keep)[0]

    def by_matching(self, case: BlockCase) -> Tensor:
        """Which token merges into which."""
        side = isqrt(case.tokens)
        choice = torch.zeros(side // 2, side // 2, dtype=torch.int64, device=case.x.device)
        return Matching(case.x, (side, side), int(self.ratio * case.tokens), choice).into
