"""The FLOPs column of the paper's Table 1, next to what this package counts."""

from dataclasses import dataclass

from ..published import published
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
        _row("PixArt", "dense", 0.0, None, "120 text tokens"),
        _row("ToMe", "tome", 0.1, tokens - tokens // 10, tome),
        _row("ToMe", "tome", 0.2, tokens - tokens * 2 // 10, tome),
        _row("AT-EDM", "atedm", 0.2, dsap_kept(_PIXART, floor), atedm),
        _row("MoD", "mod", 0.2, floor, "kept tokens rounded down"),
        _fitted("DiffRatio-L", "l", regions=1),
        _fitted("DiffRatio-LT", "lt", regions=4),
    ]


def _published(method: str, compression: float) -> tuple[float, ...]:
    """GFLOPs of Table 1 at both batch sizes."""
    figures = published("t2i", "pixart-sigma", method, compression).figures
    return tuple(figures[str(batch)]["gflop"] for batch in BATCHES)


def _row(name: str, method: str, compression: float, kept: KeptTable | None, note: str) -> PublishedRow:
    learned, figures = method in ("l", "lt"), _published(method, compression)
    counted = "mod" if learned else method
    ours = tuple(_gflops(kept, counted, batch) for batch in BATCHES)
    same = all(round(a, 1) == b for a, b in zip(ours, figures, strict=True))
    status = "fitted" if learned else "exact" if same else "plausible"
    saving = transformer_flops(_PIXART, kept, method=counted).saving(transformer_flops(_PIXART))
    return PublishedRow(name, f"{100 * compression:.0f} %", figures, ours, saving, status, note)


def _fitted(name: str, method: str, regions: int) -> PublishedRow:
    """A row whose learned table is not published: the token total that the batch-128 figure implies.

    The figure is linear in the number of kept tokens, so it fixes their sum, and nothing of their spread.
    """
    tokens, cells = _PIXART.tokens, _PIXART.layers * regions
    every, one_less = (_gflops(kept, "mod", BATCHES[1]) for kept in (tokens, tokens - 1))
    removed = round(cells * (every - _published(method, 0.2)[1]) / (every - one_less))
    total = cells * tokens - removed
    spread = [(total + cell) // cells for cell in range(cells)]
    table = [spread[first : first + regions] for first in range(0, cells, regions)]
    note = f"{total} tokens kept over {cells} cells, spread evenly"
    return _row(name, method, 0.2, table, note)


def _gflops(kept: KeptTable | None, method: str, batch: int) -> float:
    return transformer_flops(_PIXART, kept, convention="paper", batch=batch, method=method).total / 1e9
