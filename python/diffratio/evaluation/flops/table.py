"""The cost table: FLOPs and bytes of every step of a block. `flops`, `bench` and `plan` all take theirs here.

Letters: B samples of N tokens, K of them kept, T = B K packed rows, D width, M text tokens.
"""

from dataclasses import dataclass

from .shapes import TransformerShape

JOINED = {
    "linear_gate_residual": ("linear out", "gate_residual"),
    "linear_scatter": ("linear fc2", "scatter_rescale"),
}
"""Product that ends in the residual stream -> the product and the row step that it is."""


METHODS: dict[str, frozenset[str]] = {
    "dense": frozenset(),
    "mod": frozenset({"self", "cross", "mlp", "norm1", "norm2"}),
    # The paper's ToMe rows merge in the MLP; tomesd's default merges in the self-attention.
    "tome": frozenset({"mlp"}),
    "tome-attn": frozenset({"self"}),
    "tome-block": frozenset({"self", "cross", "mlp"}),
    "atedm": frozenset({"cross", "mlp", "norm2"}),
}
"""Method -> stages of a block that run on the kept tokens only; every other stage runs on all tokens."""


@dataclass(frozen=True)
class Cost:
    """What one step costs.

    Args:
        flops: of matrix products, attention's included: a FLOP is half a multiply-accumulate.
        elementwise: other operations, which no count of FLOPs includes.
        bytes: that must move, each input read once and each output written once.
    """

    flops: int
    elementwise: int
    bytes: int

    @property
    def operations(self) -> int:
        """All arithmetic, as `diffratio bench` holds it against the roofline."""
        return self.flops + self.elementwise


@dataclass(frozen=True)
class Step:
    """One step of a block.

    Args:
        name: in the block.
        operator: in the cost table, and the subject of `diffratio bench operator` that times it.
        rows: tokens of each sample that it computes on.
    """

    name: str
    operator: str
    rows: int


def products(shape: TransformerShape) -> dict[str, tuple[int, int]]:
    """Product of a block's rows -> its columns and inner dimension.

    The query of the cross-attention and both output projections are "linear out".
    """
    width, hidden = shape.width, shape.mlp_width
    return {
        "linear qkv": (3 * width, width),
        "linear out": (width, width),
        "linear fc1": (hidden, width),
        "linear fc2": (width, hidden),
    }


def step_cost(
    operator: str,
    shape: TransformerShape,
    kept: int,
    *,
    batch: int = 1,
    itemsize: int = 2,
    kept_small: int = 0,
) -> Cost:
    """What an operator costs in one block of a transformer.

    Args:
        operator: a name of the table.
        shape: N, D, M, and the channels of the MLP and of the text.
        kept: K, the tokens of each sample that the step computes on.
        batch: B.
        itemsize: bytes of an element.
        kept_small: tokens of each sample in the small bin, of the operators of two bins.

    Raises:
        ValueError: an operator that the table does not hold.
    """
    tokens, rows, small, text = (batch * n for n in (shape.tokens, kept, kept_small, shape.text_tokens))
    width, hidden = shape.width, shape.mlp_width
    row = width * itemsize  # bytes

    if operator in JOINED:
        # The branch [T, D] is neither written nor read.
        parts = [step_cost(part, shape, kept, batch=batch, itemsize=itemsize) for part in JOINED[operator]]
        moved = sum(part.bytes for part in parts) - 2 * rows * row
        return Cost(sum(p.flops for p in parts), sum(p.elementwise for p in parts), moved)
    sizes = {name: (rows, *size) for name, size in products(shape).items()}
    sizes["linear text"] = text, 2 * width, shape.context_width or width
    table = {
        "route": (2 * tokens * width, 0, tokens * (row + 4) + 8 * rows),
        "gather_adaln": (0, 8 * rows * width, 3 * rows * row),
        "adaln": (0, 8 * rows * width, 2 * rows * row),
        "qk_norm_rope": (0, 14 * rows * width, 6 * rows * row),
        "attention": (4 * rows * kept * width, 0, 4 * rows * row),
        "cross_attention": (4 * rows * shape.text_tokens * width, 0, 2 * (rows + text) * row),
        "gate_residual": (0, 2 * rows * width, 3 * rows * row),
        "mlp": (4 * rows * width * hidden, 0, 2 * rows * row + 2 * hidden * row),
        "activation": (0, 8 * rows * hidden, 3 * rows * hidden * itemsize),
        "scatter_rescale": (0, 3 * rows * width, (2 * tokens + rows) * row),
        "scatter_rescale_": (0, 3 * rows * width, 3 * rows * row),
        "copy": (0, 0, 2 * tokens * row),
        "two_bin_gelu": (0, 8 * (rows + small) * hidden, (2 * rows + small) * hidden * itemsize),
        "two_bin_blend": (0, (8 * rows + small) * width, (2 * (tokens + rows) + small) * row),
        **{name: (2 * n * m * k, 0, (n * k + k * m + n * m) * itemsize) for name, (n, m, k) in sizes.items()},
    }
    if operator not in table:
        raise ValueError(f"operator: {operator!r} is not one of {', '.join([*table, *JOINED])}")
    return Cost(*table[operator])


def block_steps(
    shape: TransformerShape, kept: int | None = None, *, method: str = "mod", cache_text_kv: bool = False
) -> list[Step]:
    """What one block does, in order.

    Args:
        shape: the transformer and its tokens; without text there is no cross-attention.
        kept: K; None is a dense block: the same kernels on all tokens.
        method: a key of `METHODS`: whose stages run on the kept tokens; "mod" has router, gather and scatter.
        cache_text_kv: the text keys and values are there already.
    """
    tokens = shape.tokens
    at = {s: tokens if kept is None or s not in METHODS[method] else kept for s in ("self", "cross", "mlp")}
    cross = [
        *([] if cache_text_kv else [Step("text_kv", "linear text", at["cross"])]),
        Step("cross_q", "linear out", at["cross"]),
        Step("cross_attention", "cross_attention", at["cross"]),
        Step("cross_out", "linear out", at["cross"]),
        Step("cross_residual", "gate_residual", at["cross"]),
    ]
    first = [Step("router", "route", at["self"]), Step("gather_adaln", "gather_adaln", at["self"])]
    last = Step("scatter_rescale", "scatter_rescale", at["mlp"])
    if kept is None or method != "mod":
        first = [Step("self_adaln", "adaln", at["self"])]
        last = Step("mlp_residual", "gate_residual", at["mlp"])
    return [
        *first,
        Step("qkv", "linear qkv", at["self"]),
        Step("attention", "attention", at["self"]),
        Step("attention_out", "linear out", at["self"]),
        Step("attention_residual", "gate_residual", at["self"]),
        *(cross if shape.text_tokens else []),
        Step("mlp_adaln", "adaln", at["mlp"]),
        Step("mlp", "mlp", at["mlp"]),
        last,
    ]
