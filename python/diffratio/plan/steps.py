"""The steps of one block: what each computes and what it must move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..flops import TransformerShape


@dataclass(frozen=True)
class Sizes:
    """B samples of N tokens, K of them kept, D wide in H heads, M text tokens, `hidden` channels in the MLP,
    `context` channels of the text before it is projected, `itemsize` bytes per element."""

    batch: int
    tokens: int
    kept: int
    width: int
    heads: int
    text: int
    hidden: int
    context: int
    itemsize: int

    @classmethod
    def of(cls, shape: TransformerShape, batch: int, kept: int, itemsize: int) -> Sizes:
        """Those of one block of a transformer."""
        return cls(
            batch,
            shape.tokens,
            kept,
            shape.width,
            shape.heads,
            shape.text_tokens,
            shape.mlp_width,
            shape.context_width or shape.width,
            itemsize,
        )


@dataclass(frozen=True)
class Step:
    """One step of a block.

    name: in the block. operator: the benchmark subject that times it. flops: true FLOPs of its products.
    moved: bytes, each input read once, each output written once. products: (rows, columns, inner) of its
    matrix products; attention has none. launches: kernels.
    """

    name: str
    operator: str
    sizes: Sizes
    flops: int
    moved: int
    products: tuple[tuple[int, int, int], ...] = ()
    launches: int = 1

    @property
    def computes(self) -> bool:
        """Whether its time grows with FLOPs rather than with bytes."""
        return bool(self.products) or self.operator in ("attention", "cross_attention")

    @property
    def work(self) -> int:
        """What its time is linear in: FLOPs or bytes, and so in kept rows, for attention in kept pairs."""
        return self.flops if self.computes else self.moved


ROW_STEPS = {"linear_gate_residual": "gate_residual", "linear_scatter": "scatter_rescale"}
"""Product that ends in the residual stream -> the row step in it."""
OPERATORS = (
    "route",
    "select",
    "gather_adaln",
    "linear qkv",
    "attention",
    "linear out",
    "gate_residual",
    "cross_attention",
    "adaln",
    "mlp",
    "scatter_rescale",
    "scatter_rescale_next",
    "linear text",
    "copy rows",
    "linear fc1",
    "linear_gate_residual",
    "linear_scatter",
)


def step(operator: str, sizes: Sizes, name: str | None = None) -> Step:
    """An operator at these sizes, as the step `name` of a block (by default of the operator's name).

    Raises:
        ValueError: an operator that is no step of a block.
    """
    s = sizes
    rows, kept, row = s.batch * s.tokens, s.batch * s.kept, s.width * s.itemsize
    shapes = {
        "linear qkv": ((kept, 3 * s.width, s.width),),
        "linear out": ((kept, s.width, s.width),),
        "linear text": ((s.batch * s.text, 2 * s.width, s.context),),
        "mlp": ((kept, s.hidden, s.width), (kept, s.width, s.hidden)),
        "linear fc1": ((kept, s.hidden, s.width),),
        "linear_gate_residual": ((kept, s.width, s.width),),
        "linear_scatter": ((kept, s.width, s.hidden),),
    }
    if operator in shapes:
        products = shapes[operator]
        flops = sum(2 * m * n * k for m, n, k in products)
        moved = sum(m * k + k * n + m * n for m, n, k in products) * s.itemsize
        # hidden, and where the rows are put back the copies of those that are not kept, by a second kernel
        joined = {"linear_gate_residual": (kept * row, 0), "linear_scatter": ((2 * rows - kept) * row, 1)}
        epilogue, copies = joined.get(operator, (0, 0))
        launches = len(products) + copies
        return Step(name or operator, operator, s, flops, moved + epilogue, products, launches)
    rest = {
        "route": (2 * rows * s.width, rows * (row + 4) + 8 * kept, 2),
        "select": (0, rows * 4 + 8 * kept, 1),
        "gather_adaln": (0, 3 * kept * row, 1),
        "attention": (4 * s.batch * s.kept**2 * s.width, 4 * kept * row, 1),
        "gate_residual": (0, 3 * kept * row, 1),
        "cross_attention": (4 * kept * s.text * s.width, (2 * kept + 2 * s.batch * s.text) * row, 1),
        "adaln": (0, 2 * kept * row, 1),
        "scatter_rescale": (0, (2 * rows + kept) * row, 1),
        "scatter_rescale_next": (2 * rows * s.width, (2 * rows + kept) * row + rows * 4, 1),
        "copy rows": (0, 2 * rows * row, 1),
    }
    if operator not in rest:
        raise ValueError(f"operator: {operator!r} is not one of {', '.join(OPERATORS)}")
    flops, moved, launches = rest[operator]
    return Step(name or operator, operator, s, flops, moved, launches=launches)


def _never(joined: Step) -> bool:
    return False


def routed_steps(
    sizes: Sizes,
    cache_text_kv: bool = True,
    is_one_kernel: Callable[[Step], bool] = _never,
    scored: bool = False,
    scores_next: bool = False,
) -> list[Step]:
    """What `mod_block` does, in order; a block that keeps nothing copies its rows.

    is_one_kernel: of a product that ends in the residual stream with its row step, whether they are one step.
    scored: the block before made the router logits, so that only the selection is left of `route`.
    scores_next: this block makes those of the next one, where it puts the rows back.
    """
    if sizes.kept == 0:
        return [step("copy rows", sizes)]
    gather = step("gather_adaln", sizes)
    middle = list(_middle(sizes, cache_text_kv, is_one_kernel))
    if middle[2].operator == "linear_gate_residual":  # it finds the rows in x: they are not written
        gather = replace(gather, moved=gather.moved * 2 // 3)
    first = [step("select" if scored else "route", sizes), gather]
    if scores_next:
        return [*first, *middle, step("mlp", sizes), step("scatter_rescale_next", sizes)]
    joined = step("linear_scatter", sizes, "fc2 + scatter_rescale")
    return [*first, *middle, *_mlp(joined, step("scatter_rescale", sizes), is_one_kernel)]


def dense_steps(
    sizes: Sizes, cache_text_kv: bool = True, is_one_kernel: Callable[[Step], bool] = _never
) -> list[Step]:
    """The same kernels on all tokens, without router, gather and scatter; `sizes.kept` is not read."""
    sizes = replace(sizes, kept=sizes.tokens)
    # Where all rows are kept nothing is copied, and what is left of the scatter moves what the gate moves.
    joined = replace(step("linear_scatter", sizes, "fc2 + gate_residual"), launches=1)
    last = step("gate_residual", sizes, "mlp gate_residual")
    first = step("adaln", sizes, "self adaln")
    return [first, *_middle(sizes, cache_text_kv, is_one_kernel), *_mlp(joined, last, is_one_kernel)]


def _middle(sizes: Sizes, cache_text_kv: bool, is_one_kernel: Callable[[Step], bool]) -> Iterator[Step]:
    """From the self-attention's rows to the MLP's."""
    yield step("linear qkv", sizes, "qkv")
    yield step("attention", sizes)
    yield from _out(sizes, "out", "gate_residual", is_one_kernel)
    if sizes.text:
        if not cache_text_kv:
            yield step("linear text", sizes, "text kv")
        yield step("linear out", sizes, "cross q")
        yield step("cross_attention", sizes)
        # A sum of two rows moves what gate_residual moves.
        yield from _out(sizes, "cross out", "cross residual", is_one_kernel)
    yield step("adaln", sizes)


def _out(sizes: Sizes, product: str, row_step: str, is_one_kernel: Callable[[Step], bool]) -> list[Step]:
    """An output projection and the row step after it, by their names in the block."""
    joined = step("linear_gate_residual", sizes, f"{product} + {row_step}")
    if is_one_kernel(joined):
        return [joined]
    return [step("linear out", sizes, product), step("gate_residual", sizes, row_step)]


def _mlp(joined: Step, last: Step, is_one_kernel: Callable[[Step], bool]) -> list[Step]:
    """joined: the second product with the row step `last`."""
    if is_one_kernel(joined):
        return [step("linear fc1", joined.sizes, "fc1"), joined]
    return [step("mlp", joined.sizes), last]
