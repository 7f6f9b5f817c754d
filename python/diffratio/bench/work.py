"""FLOPs of an operator and the bytes that it must move: each input read once, each output written once."""

from __future__ import annotations

from diffratio_kernels.testing.calls import two_bins_of
from diffratio_kernels.testing.inputs import ModBlockCase

from .options import Options

JOINED = {
    "linear_gate_residual": ("linear out", "gate_residual"),
    "linear_scatter": ("linear fc2", "scatter_rescale"),
}
"""Product that ends in the residual stream -> the product and the row step that it is."""


def case_of(options: Options, keep: int) -> ModBlockCase:
    """A block with the MLP of PixArt, four times as wide."""
    width, heads = options.width, options.heads
    sizes = {"heads": heads, "head_dim": width // heads, "hidden": 4 * width, "text": options.text}
    return ModBlockCase(
        seed=0, batch=options.batch, tokens=options.tokens, keep=(keep,), dtype=options.dtype, **sizes
    )


def operator_work(op: str, case: ModBlockCase) -> tuple[int, int]:
    """FLOPs and bytes of an operator of `testing.calls`, of attention to the text ("cross_attention"), and of
    the two of `levels.handed_logits`."""
    rows, width, size = case.batch * case.tokens, case.heads * case.head_dim, case.dtype.itemsize
    kept, pairs = sum(case.full_keep), sum(k * k for k in case.full_keep)
    row, weights = width * size, 2 * width * case.hidden
    text, small = case.text or 0, sum(two_bins_of(case).full_keep_small)
    return {
        "route": (2 * rows * width, rows * (row + 4) + 8 * kept),
        "select": (0, 4 * rows + 8 * kept),
        "gather_adaln": (8 * kept * width, 3 * kept * row),
        "adaln": (8 * kept * width, 2 * kept * row),
        "gate_residual": (2 * kept * width, 3 * kept * row),
        "attention": (4 * pairs * width, 4 * kept * row),
        "cross_attention": (4 * kept * text * width, 2 * (kept + case.batch * text) * row),
        "mlp": (2 * kept * weights, 2 * kept * row + weights * size),
        "scatter_rescale": (3 * kept * width, (2 * rows + kept) * row),
        "scatter_rescale_next": ((3 * kept + 2 * rows) * width, (2 * rows + kept) * row + 4 * rows),
        "scatter_rescale_": (3 * kept * width, 3 * kept * row),
        "two_bin_gelu": (8 * (kept + small) * case.hidden, (2 * kept + small) * case.hidden * size),
        "two_bin_blend": ((8 * kept + small) * width, (2 * (rows + kept) + small) * row),
    }[op]


def product_work(rows: int, columns: int, inner: int, size: int) -> tuple[int, int]:
    """The same of a product [rows, inner] x [inner, columns] of elements of `size` bytes."""
    return 2 * rows * columns * inner, size * (rows * inner + inner * columns + rows * columns)


def joined_work(name: str, case: ModBlockCase) -> tuple[int, int]:
    """The same of a product with its row step, which neither writes nor reads the branch [T, D]."""
    width, kept, size = case.heads * case.head_dim, sum(case.full_keep), case.dtype.itemsize
    product, row_step = JOINED[name]
    flops, moved = product_work(kept, width, case.hidden if product == "linear fc2" else width, size)
    more, rows_moved = operator_work(row_step, case)
    return flops + more, moved + rows_moved - 2 * kept * width * size
