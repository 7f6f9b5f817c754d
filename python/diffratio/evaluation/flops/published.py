"""The FLOPs column of the paper's Table 1, next to what this package counts."""

from dataclasses import dataclass

from .count import KeptTable, dsap_kept, transformer_flops
from .shapes import TransformerShape

BATCHES = (16, 128)


@dataclass(frozen=True)
class PublishedRow:
    """One row of Table 1 (PixArt at 512 px); GFLOPs at batch 16 and at batch 128.

    `status` is "exact" (a formula gives every printed digit), "plausible" (a formula comes close, and the
    authors do not say that it is theirs) or "fitted" (the kept tokens were chosen to give the figure, so the
    agreement only shows that such a table exists). `true_saving` is a fraction of the true dense count.
    """

    name: str
    compression: str
    published: tuple[float, float]
    ours: tuple[float, float]
    true_saving: float
    status: str
    note: str

    @property
    def error(self) -> float:
        """The larger relative difference of the two figures."""
        return max(abs(a / b - 1) for a, b in zip(self.ours, self.published, strict=True))


def rows() -> list[PublishedRow]:
    """Table 1 of the paper: every published figure, our count of it, and how far the two may be compared."""
    shape = TransformerShape.pixart_xl_512()
    floor = shape.tokens * 8 // 10
    return [
        _row("PixArt", "0 %", (17361.7, 138893.9), shape, "dense", None, "120 text tokens"),
        _row("ToMe", "10 %", (16391.4, 131131.6), shape, "tome", _merged(shape, 1), "merges in the MLP only"),
        _row("ToMe", "20 %", (15421.2, 123369.2), shape, "tome", _merged(shape, 2), "merges in the MLP only"),
        _row(
            "AT-EDM",
            "20 %",
            (15132.7, 121061.2),
            shape,
            "atedm",
            dsap_kept(shape, floor),
            "outer 8 layers unpruned in 6 of 20 steps: our reading",
        ),
        _row("MoD", "20 %", (13949.3, 111594.2), shape, "mod", floor, "kept tokens rounded down"),
        _fitted("DiffRatio-L", (13967.1, 111737.0), shape, regions=1),
        _fitted("DiffRatio-LT", (13957.2, 111657.3), shape, regions=4),
    ]


def _merged(shape: TransformerShape, tenths: int) -> int:
    return shape.tokens - shape.tokens * tenths // 10


def _row(
    name: str,
    compression: str,
    published: tuple[float, float],
    shape: TransformerShape,
    method: str,
    kept: KeptTable | None,
    note: str,
    fitted: bool = False,
) -> PublishedRow:
    ours = tuple(
        transformer_flops(shape, kept, convention="paper", batch=batch, method=method).total / 1e9
        for batch in BATCHES
    )
    same = all(round(a, 1) == b for a, b in zip(ours, published, strict=True))
    status = "fitted" if fitted else "exact" if same else "plausible"
    saving = transformer_flops(shape, kept, method=method).saving(transformer_flops(shape))
    return PublishedRow(name, compression, published, ours, saving, status, note)


def _fitted(name: str, published: tuple[float, float], shape: TransformerShape, regions: int) -> PublishedRow:
    """A row whose learned table is not published: the token total that the batch-128 figure implies.

    The figure is linear in the number of kept tokens, so it fixes their sum, and nothing of their spread.
    """

    def gflops(kept: int) -> float:
        report = transformer_flops(shape, kept, convention="paper", batch=BATCHES[1], method="mod")
        return report.total / 1e9

    per_token = gflops(shape.tokens) - gflops(shape.tokens - 1)
    removed_share = (gflops(shape.tokens) - published[1]) / per_token
    cells = shape.layers * regions
    total = cells * shape.tokens - round(cells * removed_share)
    spread = _spread(total, cells)
    table = [spread[layer * regions : (layer + 1) * regions] for layer in range(shape.layers)]
    note = f"{total} tokens kept over {cells} cells, spread evenly"
    return _row(name, "20 %", published, shape, "mod", table, note, fitted=True)


def _spread(total: int, cells: int) -> list[int]:
    return [(total + cell) // cells for cell in range(cells)]
