"""The FLOPs column of the paper's Table 1, next to what this package counts."""

from dataclasses import dataclass

from .count import KeptTable, dsap_kept, transformer_flops
from .shapes import PRESETS

BATCHES = (16, 128)
_PIXART = PRESETS["pixart-xl-512"]


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
    tokens, tome = _PIXART.tokens, "merges in the MLP only"
    floor = tokens * 8 // 10
    atedm = "outer 8 layers unpruned in 6 of 20 steps: our reading"
    return [
        _row("PixArt", "0 %", (17361.7, 138893.9), "dense", None, "120 text tokens"),
        _row("ToMe", "10 %", (16391.4, 131131.6), "tome", tokens - tokens // 10, tome),
        _row("ToMe", "20 %", (15421.2, 123369.2), "tome", tokens - tokens * 2 // 10, tome),
        _row("AT-EDM", "20 %", (15132.7, 121061.2), "atedm", dsap_kept(_PIXART, floor), atedm),
        _row("MoD", "20 %", (13949.3, 111594.2), "mod", floor, "kept tokens rounded down"),
        _fitted("DiffRatio-L", (13967.1, 111737.0), regions=1),
        _fitted("DiffRatio-LT", (13957.2, 111657.3), regions=4),
    ]


def _row(
    name: str,
    compression: str,
    published: tuple[float, float],
    method: str,
    kept: KeptTable | None,
    note: str,
    fitted: bool = False,
) -> PublishedRow:
    ours = tuple(_gflops(kept, method, batch) for batch in BATCHES)
    same = all(round(a, 1) == b for a, b in zip(ours, published, strict=True))
    status = "fitted" if fitted else "exact" if same else "plausible"
    saving = transformer_flops(_PIXART, kept, method=method).saving(transformer_flops(_PIXART))
    return PublishedRow(name, compression, published, ours, saving, status, note)


def _fitted(name: str, published: tuple[float, float], regions: int) -> PublishedRow:
    """A row whose learned table is not published: the token total that the batch-128 figure implies.

    The figure is linear in the number of kept tokens, so it fixes their sum, and nothing of their spread.
    """
    tokens, cells = _PIXART.tokens, _PIXART.layers * regions
    every, one_less = (_gflops(kept, "mod", BATCHES[1]) for kept in (tokens, tokens - 1))
    removed = round(cells * (every - published[1]) / (every - one_less))
    total = cells * tokens - removed
    spread = [(total + cell) // cells for cell in range(cells)]
    table = [spread[first : first + regions] for first in range(0, cells, regions)]
    note = f"{total} tokens kept over {cells} cells, spread evenly"
    return _row(name, "20 %", published, "mod", table, note, fitted=True)


def _gflops(kept: KeptTable | None, method: str, batch: int) -> float:
    return transformer_flops(_PIXART, kept, convention="paper", batch=batch, method=method).total / 1e9
