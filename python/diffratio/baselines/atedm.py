"""AT-EDM (Wang et al., CVPR 2024): tokens that little attention goes to skip the rest of a block.

    A  = softmax(q k^T / sqrt(d)) of each head             every token attends to every other
    s <- A^T s, from 1/N, a few times                      weighted page rank: who is attended to, by whom
    score = sqrt(sum over heads of s^2)                    the tokens with the largest go on
    what was pruned takes the finished row of the kept token that it attends to most

The paper publishes no code and is about another model (SDXL). Placed after self-attention, with the outer
layers open in the noisiest steps, FLOPs are those of this paper's Table 1 to 1.4e-6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor

from diffratio_kernels.blocks import products
from diffratio_kernels.blocks.joint import heads_of, prepared
from diffratio_kernels.blocks.routed import called
from diffratio_kernels.blocks.stream import Call, CrossAttention, SecondAttention, SelfAttention
from diffratio_kernels.ops.route.op import run_select
from diffratio_kernels.types import PackedRows, Run

from .calls import Baseline, check_part, check_whole, cross_attention, why_not

REFILLS = ("copy", "residual")
MOST = 0.9
ITERATIONS = 5
OPEN_STEPS = 0.3


def page_rank(attention: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Importance [..., N] of tokens by a map [..., N, N] whose rows sum to 1: s <- A^T s, from 1/N."""
    tokens = attention.shape[-1]
    rank = attention.new_full((*attention.shape[:-2], 1, tokens), 1 / tokens)
    for _ in range(iterations):
        rank = rank @ attention
    return rank.squeeze(-2)


class Pruning:
    """The parts of one call between the choice of its tokens and their refill.

    Args:
        call: of the block.
        run: how its operators run.
        keep: kept tokens of each sample.
        how: the baseline.
    """

    def __init__(self, call: Call, run: Run, keep: list[int], how: AtEdm):
        self.call, self.run, self.keep, self.how = call, replace(run, buffer=None), keep, how
        self.kept: PackedRows | None = None
        self.source: Tensor | None = None
        """[B*N]: of each row the row that it gets in the end, itself where it is kept."""

    def changed(self) -> Call:
        """The call by these parts."""
        image, after = self.call.image, self.call.after_attention
        image = replace(image, attention=self.attention, mlp=self.mlp)
        after = None if after is None else self.after_attention
        return replace(self.call, image=image, after_attention=after, output=self.output)

    def attention(self, normed: Tensor, rows: PackedRows) -> Tensor:
        """Attention of all rows [B*N, D]; its maps, made once, also say which are kept."""
        own, run, (batch, tokens) = self.call.image.attention, self.run, self.call.image.tokens.shape[:2]
        given, _ = heads_of(run, own, normed, 0)
        heads = prepared(run, own, given, rows).unflatten(0, (batch, tokens)).transpose(1, 2)
        query, key, value = heads.split([given.heads, given.kv_heads, given.kv_heads], dim=1)
        score, mean, attended, shared = 0, 0, [], given.heads // given.kv_heads
        for head in range(given.heads):  # one map [B, N, N] at a time
            of_key = head // shared
            logits = query[:, head] @ key[:, of_key].mT / math.sqrt(given.width)
            weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
            attended.append(weights.to(value.dtype) @ value[:, of_key])
            with torch.no_grad():
                score = score + page_rank(weights, self.how.iterations).square()
                mean = mean + weights / given.heads if self.how.refill == "copy" else None
        self._choose(score.sqrt(), mean)
        attended = torch.stack(attended, dim=2).flatten(2).flatten(0, 1)
        if own.gate is not None:
            attended = attended * products.product(run, normed, own.gate).sigmoid()
        branch = products.product(run, attended, own.out)
        norm = self.call.image.attention_norm
        return branch if norm is None else norm(branch)

    def _choose(self, score: Tensor, mean: Tensor | None) -> None:
        """Keep the tokens with the largest score [B, N]; mean [B, N, N] of the maps says what others get."""
        batch, tokens = score.shape
        self.kept = run_select(self.run, score, self.keep)
        self.kept.groups = self.call.image.groups
        if mean is None:
            return
        index = self.kept.index
        kept = torch.zeros(batch * tokens, dtype=torch.bool, device=index.device).index_fill(0, index, True)
        best = mean.masked_fill(~kept.view(batch, 1, tokens), -1).argmax(-1)
        best = best + tokens * torch.arange(batch, device=index.device)[:, None]
        self.source = best.flatten().index_copy(0, index, index)

    def _on_kept(self, part, inputs: Tensor) -> Tensor:
        """A branch of the kept rows, nothing for others [B*N, D]."""
        index = self.kept.index
        branch = part(inputs[index], self.kept)
        return branch.new_zeros(inputs.shape).index_copy(0, index, branch)

    def after_attention(self, hidden: Tensor, rows: PackedRows) -> Tensor:
        """Attention of the kept rows to a text."""
        after = self.call.after_attention
        known = isinstance(after, CrossAttention)
        branch = partial(cross_attention, self.run, after) if known else partial(called, "text", after)
        return self._on_kept(branch, hidden)

    def mlp(self, normed: Tensor, rows: PackedRows) -> Tensor:
        """The MLP of the kept rows."""
        mlp = self.call.image.mlp
        return self._on_kept(lambda some, kept: products.mlp_branch(self.run, some, mlp, kept), normed)

    def output(self, finished: Tensor, beside: Tensor | None):
        """What the block returns, pruned rows refilled."""
        if self.source is not None:
            finished = finished.flatten(0, 1)[self.source].view(finished.shape)
        return self.call.output(finished, beside)


@dataclass
class AtEdm(Baseline):
    """AT-EDM of one model; arguments as of `apply_atedm`."""

    ratio: float
    refill: str = "copy"
    iterations: int = ITERATIONS
    open_layers: int | None = None
    open_steps: float = OPEN_STEPS

    regions = 10

    def __post_init__(self) -> None:
        check_part("ratio", self.ratio, MOST)
        if self.refill not in REFILLS:
            raise ValueError(f"refill={self.refill!r} must be one of {', '.join(REFILLS)}")
        check_whole("iterations", self.iterations, 1)
        if self.open_layers is not None:
            check_whole("open_layers", self.open_layers, 0)
        check_part("open_steps", self.open_steps, 1)
        if abs(10 * self.open_steps - round(10 * self.open_steps)) > 1e-6:
            raise ValueError(f"open_steps={self.open_steps!r} must be a tenth: 0.0, 0.1, ... 1.0")

    @property
    def name(self) -> str:
        return f"atedm:{self.ratio:g}" + f":{self.refill}" * (self.refill != "copy")

    def left(self, tokens: int) -> int:
        return max(1, math.floor((1 - Fraction(str(self.ratio))) * tokens))  # 0.2 is the decimal number

    def is_open(self, layer: int, layers: int) -> bool:
        """Whether a layer prunes nothing in the noisiest steps: half of them at each end of the model."""
        count = 2 * (layers // 7) if self.open_layers is None else self.open_layers
        return layer < -(-count // 2) or layer >= layers - count // 2

    def kept_ratios(self, layer: int, layers: int) -> tuple[float, ...]:
        both = self.is_open(layer, layers) and self.open_steps > 0
        return (1 - self.ratio, 1.0) if both else (1 - self.ratio,)

    def _open(self, layer, batch: int | None, args, kwargs) -> list[bool]:
        """Of each sample, or of all, whether the layer prunes nothing in this call."""
        if self.ratio == 0 or not self.is_open(layer.number, len(layer.model.layers)):
            return [self.ratio == 0] * (batch or 1)
        first = self.regions - round(10 * self.open_steps)
        return [region >= first for region in layer.model.regions_now(layer, batch, args, kwargs)]

    def leaves(self, layer, args, kwargs):
        return all(self._open(layer, None, args, kwargs))

    def changed(self, layer, call, run, args, kwargs):
        batch, tokens = call.image.tokens.shape[:2]
        if self.left(tokens) == tokens:
            return None
        is_open = self._open(layer, batch, args, kwargs)
        keep = [tokens if one else self.left(tokens) for one in is_open]
        self.refuse(layer, self.why_not(call))
        return Pruning(call, run, keep, self).changed()

    def alone(self, call, run, size):
        batch, tokens = call.image.tokens.shape[:2]
        return Pruning(call, run, [self.left(tokens)] * batch, self).changed()

    def why_not(self, call: Call) -> str | None:
        """Why the call cannot be pruned, None where it can."""
        own = call.image.attention
        if call.text is not None or isinstance(call.after_attention, SecondAttention):
            return "its tokens attend to those of a text too, and are ranked by attention to each other"
        if not isinstance(own, SelfAttention):
            return "its attention is a module that gives no maps"
        if own.key_scale is not None or own.more is not None:
            return "its attention is to more than its tokens"
        return why_not(call)
