"""Counting: the FLOPs of one block, summed over layers and averaged over timestep regions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...baselines.atedm import ITERATIONS
from .shapes import TransformerShape
from .table import METHODS, block_steps, step_cost

CONVENTIONS = ("true", "paper")
_TIME_CHANNELS = 256
"""Of the sinusoidal timestep embedding, the same in PixArt, DiT and diffusers."""

KeptTable = int | Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class FlopsReport:
    """FLOPs of one forward of a whole batch, by part.

    `parts` maps a part to FLOPs (1 FLOP = half a MAC). An [L][R] table gives means over the R regions.
    """

    convention: str
    method: str
    batch: int
    parts: dict[str, int | float]

    @property
    def total(self) -> int | float:
        """FLOPs of all parts."""
        return sum(self.parts.values())

    @property
    def macs(self) -> int | float:
        """Multiply-accumulates: half the FLOPs."""
        return _divide(self.total, 2)

    def saving(self, dense: "FlopsReport") -> float:
        """Fraction of the FLOPs of `dense` that this forward does without."""
        return 1 - self.total / dense.total

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON: the fields, `total` and `macs`."""
        return {**asdict(self), "total": self.total, "macs": self.macs}


def dsap_kept(shape: TransformerShape, kept: int, *, steps: int = 20, open_steps: int = 6) -> list[list[int]]:
    """AT-EDM's denoising-steps-aware pruning: kept tokens as a table [layers][steps].

    In the first `open_steps` of `steps` the outer layers (a seventh at each end, so 8 of 28) prune nothing.
    This reading gives the paper's AT-EDM row to 1.4e-6; the authors' own adaptation is not public.
    """
    end = shape.layers // 7
    outer = [shape.tokens] * open_steps + [kept] * (steps - open_steps)
    inner = [kept] * steps
    return [outer if layer < end or layer >= shape.layers - end else inner for layer in range(shape.layers)]


def transformer_flops(
    shape: TransformerShape,
    kept: KeptTable | None = None,
    *,
    convention: str = "true",
    batch: int = 1,
    method: str | None = None,
    cache_text_kv: bool = False,
) -> FlopsReport:
    """FLOPs of one forward of the transformer.

    Args:
        shape: the transformer and its tokens.
        kept: tokens kept: None (all), one int for every layer, L ints, or an [L][R] table whose regions
            count equally. For ToMe it is the tokens left after merging. A MoD layer that keeps 0 is bypassed.
        convention: "true" counts every matrix product, attention scores and values included. "paper" is the
            paper's Table 1, as found by reproducing it: thop's MACs (linear and convolution layers, 2 per
            element of a LayerNorm without affine, no attention products), times 2 and the batch.
        batch: samples in the forward; classifier-free guidance doubles it.
        method: a key of `METHODS`; None means "dense" without `kept` and "mod" with it. ToMe's matching and
            AT-EDM's ranking are products, and are counted; averaging and refilling are not.
        cache_text_kv: the text keys and values come from an earlier timestep, so they cost nothing.

    Raises:
        ValueError: an impossible argument; the message starts with its name.
    """
    method = _check_method(method, kept)
    if convention not in CONVENTIONS:
        raise ValueError(f"convention: {convention!r} is not one of {', '.join(CONVENTIONS)}")
    if not _is_int(batch) or batch < 1:
        raise ValueError(f"batch: {batch!r} must be a positive integer")
    table = kept_table(kept, shape, method)
    regions, cells = len(table[0]), Counter(count for row in table for count in row)
    flops, running = Counter(), cells.total() - cells[0]
    for count, blocks in cells.items():
        rows = None if method == "dense" else count
        for part, value in block_flops(shape, rows, method=method, cache_text_kv=cache_text_kv).items():
            flops[part] += blocks * value
    flops.update(_frame_flops(shape, regions, running))
    if convention == "paper":
        # thop sees modules only: attention and matching are function calls, LayerNorms are modules.
        for functional in ("attention", "cross_attention", "matching", "ranking"):
            del flops[functional]
        every, kept_rows = running * shape.tokens, sum(cells.elements())
        normed = [kept_rows if norm in METHODS[method] else every for norm in ("norm1", "norm2")]
        flops["norms"] = 4 * shape.width * (regions * shape.tokens + sum(normed))
    parts = {part: _divide(batch * value, regions) for part, value in flops.items() if value}
    return FlopsReport(convention, method, batch, parts)


def block_flops(
    shape: TransformerShape, kept: int | None, *, method: str | None = None, cache_text_kv: bool = True
) -> Counter[str]:
    """True FLOPs of one sample through one block of a transformer, by step.

    Args:
        shape: its sizes.
        kept: K; None is the dense block, which has no router.
        method: a key of `METHODS`; None means "dense" without `kept` and "mod" with it.
        cache_text_kv: the text keys and values are already projected.

    Raises:
        ValueError: an impossible argument; the message starts with its name.
    """
    method = _check_method(method, kept)
    if kept is not None and _check_kept(kept, shape.tokens, method) == 0:
        return Counter()
    steps = block_steps(shape, kept, method=method, cache_text_kv=cache_text_kv)
    flops = Counter({step.name: step_cost(step.operator, shape, step.rows).flops for step in steps})
    if method == "atedm" and kept < shape.tokens:
        flops["ranking"] = 2 * shape.heads * ITERATIONS * shape.tokens**2
    if method.startswith("tome") and kept < shape.tokens:
        targets = shape.tokens // 4
        flops["matching"] = 2 * shape.width * targets * (shape.tokens - targets)
    return flops


def kept_table(kept: KeptTable | None, shape: TransformerShape, method: str = "mod") -> list[list[int]]:
    """Kept tokens as a table [L][R], from one count, one of each layer, or the table itself.

    Raises:
        ValueError: it does not fit the shape, or a count is impossible; the message starts with "kept".
    """
    if kept is None or _is_int(kept):
        kept = [shape.tokens if kept is None else kept] * shape.layers
    if not isinstance(kept, Sequence) or isinstance(kept, str):
        raise ValueError(f"kept: {kept!r} is neither an integer nor a list")
    if len(kept) != shape.layers:
        raise ValueError(f"kept: {len(kept)} rows for {shape.layers} layers")
    table = [list(row) if isinstance(row, Sequence) else [row] for row in kept]
    if not table[0] or any(len(row) != len(table[0]) for row in table):
        raise ValueError("kept: every layer needs the same number of regions, at least one")
    return [[_check_kept(count, shape.tokens, method) for count in row] for row in table]


def _frame_flops(shape: TransformerShape, forwards: int, blocks: int) -> dict[str, int]:
    """FLOPs of one sample outside of the blocks, in so many forwards with so many blocks that run in all."""
    width, square, text = shape.width, shape.width**2, shape.text_tokens
    embedder = _TIME_CHANNELS * width + square
    if shape.adaln == "zero":
        # diffusers embeds the timestep again in each block that runs, and once more for the output.
        conditioning = blocks * (embedder + 6 * square) + forwards * (embedder + 2 * square)
    else:
        third = width // 3
        sizes = 3 * (_TIME_CHANNELS * third + third**2) if shape.size_conditions else 0
        conditioning = forwards * (embedder + sizes + 6 * square)
    caption = 0 if shape.caption_channels is None else (shape.caption_channels + width) * width
    pixels = shape.patch**2 * shape.tokens
    macs = {
        "conditioning": conditioning,
        "caption": forwards * caption * text,
        "patch_embedding": forwards * shape.in_channels * width * pixels,
        "output": forwards * shape.out_channels * width * pixels,
    }
    return {part: 2 * value for part, value in macs.items()}


def _check_method(method: str | None, kept: KeptTable | None) -> str:
    if method is None:
        return "dense" if kept is None else "mod"
    if method not in METHODS:
        raise ValueError(f"method: {method!r} is not one of {', '.join(METHODS)}")
    if method == "dense" and kept is not None:
        raise ValueError("method: 'dense' keeps every token, so it takes no kept counts")
    return method


def _check_kept(count: int, tokens: int, method: str) -> int:
    # ToMe cannot merge below its targets, a quarter of the tokens; AT-EDM copies from a kept token.
    least = {"mod": 0}.get(method, tokens // 4 if method.startswith("tome") else 1)
    if not _is_int(count) or not least <= count <= tokens:
        raise ValueError(f"kept: {count!r} is not an integer from {least} to {tokens} (method {method!r})")
    return count


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _divide(value: int | float, by: int) -> int | float:
    """An exact int where there is one, so that dense and single-region counts never pass through floats."""
    return value // by if isinstance(value, int) and value % by == 0 else value / by
