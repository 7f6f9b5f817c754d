"""Token merging for diffusion (ToMe, Bolya & Hoffman 2023): similar tokens are computed as their mean.

Of every 2 x 2 tokens one is a destination, the others are sources. The r sources that are most like a
destination, by the cosine of what the block is given, are averaged into it, and get its output back.

    x [B, N, D] --- match ---> which source goes where
    normed [B, N, D] --- merge ---> [B, N - r, D] --- attention or MLP ---> unmerge: copies [B, N, D]

A block merges what its branch is given, modulated, and adds the branch with its gate after it is unmerged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from diffratio_kernels.blocks import products
from diffratio_kernels.blocks.joint import every_row
from diffratio_kernels.blocks.stream import Call, CrossAttention, SecondAttention, SelfAttention
from diffratio_kernels.types import PackedRows, Run

from .calls import Baseline, check_part, check_whole, cross_attention, why_not

MERGES = ("attn", "mlp", "all")
MOST = 0.75
"""Of a grid of even sides a quarter are destinations, which stay."""


class Matching:
    """Which tokens of x [B, N, D], the height x width tokens of an image in raster order, merge.

    Args:
        x: what is compared.
        size: height and width; of an odd side the last row or column holds no destination.
        merged: r, the sources that merge.
        choice: [height // 2, width // 2] of 0..3: which token of each 2 x 2 is the destination, in raster
            order; None: the first.
    """

    def __init__(self, x: Tensor, size: tuple[int, int], merged: int, choice: Tensor | None = None):
        height, width = size
        tokens, device = height * width, x.device
        rows, columns = torch.meshgrid(
            2 * torch.arange(height // 2, device=device), 2 * torch.arange(width // 2, device=device),
            indexing="ij",
        )  # fmt: skip
        if choice is not None:
            choice = choice.to(device)
            rows, columns = rows + choice // 2, columns + choice % 2
        goals = (rows * width + columns).flatten()
        is_goal = torch.zeros(tokens, dtype=torch.uint8, device=device).index_fill(0, goals, 1)
        sources = is_goal.argsort(stable=True)[: tokens - len(goals)]
        metric = F.normalize(x.detach(), dim=-1)
        likeness = metric[:, sources] @ metric[:, goals].mT
        best, goal = likeness.max(-1)
        order = best.argsort(dim=-1, descending=True, stable=True)
        merging, alone = order[:, :merged], order[:, merged:]
        self.tokens, self.left = tokens, tokens - min(merged, len(sources))
        self.goals, self.alone, self.merging = goals, sources[alone], sources[merging]
        self.into = goal.gather(1, merging)
        """[B, r]: the places among the destinations into which `merging` go."""

    def merge(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N - r, D]: the sources that stay, then destinations as means of what they hold."""
        goals = x[:, self.goals]
        merged = goals.scatter_reduce(1, _rows(self.into, x), x.gather(1, _rows(self.merging, x)), "mean")
        return torch.cat([x.gather(1, _rows(self.alone, x)), merged], dim=1)

    def unmerge(self, y: Tensor) -> Tensor:
        """[B, N - r, D] -> [B, N, D]: what merged gets the row of its destination."""
        alone, goals = y.split([self.alone.shape[1], len(self.goals)], dim=1)
        merged = goals.gather(1, _rows(self.into, y))
        places = torch.cat([self.alone, self.goals.expand(len(y), -1), self.merging], dim=1)
        out = y.new_empty(len(y), self.tokens, y.shape[2])
        return out.scatter(1, _rows(places, y), torch.cat([alone, goals, merged], dim=1))

    def merge_rows(self, rows: Tensor, _: PackedRows) -> tuple[Tensor, PackedRows]:
        """`merge` of packed rows [B*N, D], and which rows these are."""
        batch = self.into.shape[0]
        merged = self.merge(rows.unflatten(0, (batch, -1))).flatten(0, 1)
        return merged, every_row(batch, self.left, rows.device)

    def unmerge_rows(self, rows: Tensor) -> Tensor:
        """`unmerge` of packed rows."""
        return self.unmerge(rows.unflatten(0, (self.into.shape[0], -1))).flatten(0, 1)


def _rows(index: Tensor, like: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, like.shape[-1])


def merged(call: Call, run: Run, matching: Matching, merge: str) -> Call:
    """The call with its attention, its MLP, or every branch on merged tokens."""
    run = replace(run, buffer=None)
    image, after = call.image, call.after_attention

    def on_merged(part: Callable[[Tensor, PackedRows], Tensor]) -> Callable[[Tensor, PackedRows], Tensor]:
        def branch(rows: Tensor, which: PackedRows) -> Tensor:
            return matching.unmerge_rows(part(*matching.merge_rows(rows, which)))

        return branch

    def attending(own: SelfAttention) -> SelfAttention:
        def out(rows: Tensor) -> Tensor:
            return matching.unmerge_rows(products.product(run, rows, own.out))

        return replace(own, merge=matching.merge_rows, out=out)

    if merge in ("mlp", "all") and image.mlp is not None:
        mlp = image.mlp
        image = replace(image, mlp=on_merged(lambda rows, which: products.mlp_branch(run, rows, mlp, which)))
    if merge in ("attn", "all"):
        image = replace(image, attention=attending(image.attention))
        if isinstance(after, SecondAttention):
            after = replace(after, attention=attending(after.attention))
        elif merge == "all" and isinstance(after, CrossAttention):
            after = on_merged(partial(cross_attention, run, after))
    return replace(call, image=image, after_attention=after)


@dataclass
class Tome(Baseline):
    """ToMe of one model; arguments as of `apply_tome`."""

    ratio: float
    merge: str = "attn"
    seed: int = 0
    random: torch.Generator = field(init=False, repr=False, compare=False)
    """On the CPU, so that a seed draws the same on every device."""

    def __post_init__(self) -> None:
        check_part("ratio", self.ratio, MOST)
        check_whole("seed", self.seed, 0)
        if self.merge not in MERGES:
            raise ValueError(f"merge={self.merge!r} must be one of {', '.join(MERGES)}")
        self.random = torch.Generator().manual_seed(self.seed)

    @property
    def name(self) -> str:
        return f"tome:{self.merge}:{self.ratio:g}"

    def left(self, tokens: int) -> int:
        return tokens - int(tokens * self.ratio)  # rounded as tomesd does

    def kept_ratios(self, layer: int, layers: int) -> tuple[float, ...]:
        return (1 - self.ratio,)

    def layout(self, model, given):
        """Height and width in tokens."""
        image, patch = given.get("hidden_states"), getattr(model.config, "patch_size", None)
        if not isinstance(image, Tensor) or image.dim() != 4 or not isinstance(patch, int):
            raise ValueError(
                f"{self.name} does not apply to {type(model).__name__}: it merges in 2 x 2 tokens, and what "
                "the model is called with is no image [B, C, height, width] that tells which these are"
            )
        return image.shape[2] // patch, image.shape[3] // patch

    def leaves(self, layer, args, kwargs):
        return self.ratio == 0

    def changed(self, layer, call, run, args, kwargs):
        tokens = call.image.tokens.shape[1]
        if self.left(tokens) == tokens:
            return None
        self.refuse(layer, self.why_not(call))
        size = layer.model.told.get(type(self))
        if size is None:
            raise RuntimeError(f"{layer.name}: the model tells {self.name} the size of the image; call it")
        if size[0] * size[1] != tokens:
            self.refuse(layer, f"it is given {tokens} tokens of an image of {size[0]} x {size[1]}")
        if min(size) < 2:
            self.refuse(layer, f"an image of {size[0]} x {size[1]} tokens has no 2 x 2 in which they merge")
        return self.alone(call, run, size)

    def alone(self, call, run, size):
        x, choice = call.image.tokens, None
        if x.shape[0] % 2 == 0:  # as tomesd: halves of a guided batch that come one by one must agree
            choice = torch.randint(4, (size[0] // 2, size[1] // 2), generator=self.random)
        count = x.shape[1] - self.left(x.shape[1])
        return merged(call, run, Matching(x, size, count, choice), self.merge)

    def why_not(self, call: Call) -> str | None:
        """Why the call cannot be merged, None where it can."""
        reason, own, after = why_not(call), call.image.attention, call.after_attention
        if reason is not None or self.merge == "mlp":
            return reason
        alone = "a merged token has none (tome:mlp applies)"
        if not isinstance(own, SelfAttention):
            return f"its attention is a module that may know tokens by their places, and {alone}"
        if own.rope is not None or own.key_scale is not None:
            return f"its attention knows tokens by their places (rope), and {alone}"
        if self.merge == "all" and not isinstance(after, (CrossAttention, SecondAttention, type(None))):
            return f"its attention to the text is a module that may know tokens by their places, and {alone}"
        return None
