"""How far a measured operator is from what its machine gives: the larger of its FLOPs and its bytes."""

from collections.abc import Iterable
from dataclasses import dataclass

from .results import select


@dataclass(frozen=True)
class Roof:
    """Of one machine and dtype, as the suite "peak" measures it: FLOP/s of a product, bytes/s of a copy."""

    flops: float
    bytes: float

    @property
    def balance(self) -> float:
        """FLOPs per byte from which on FLOPs are the limit."""
        return self.flops / self.bytes

    def seconds(self, row: dict) -> float:
        """The least time for a row's work."""
        return max(row["flops"] / self.flops, row["bytes"] / self.bytes)

    def part(self, row: dict) -> float:
        """How much of the roof a row reaches, 1 at most but for a cache that serves bytes faster."""
        return self.seconds(row) / row["seconds"]

    def bound(self, row: dict) -> str:
        """What limits a row: "FLOPs" or "bytes"."""
        return "FLOPs" if row["flops"] / row["bytes"] > self.balance else "bytes"


def roof_of(rows: Iterable[dict], device: str, dtype: str, threads: int) -> Roof | None:
    """The machine's roof, None where its suite "peak" was not measured."""
    wanted = {"suite": "peak", "device": device, "dtype": dtype, "threads": threads}
    peaks = {row["subject"]: row for row in select(rows, **wanted)}
    if not {"matmul", "copy"} <= peaks.keys():
        return None
    product, copy = peaks["matmul"], peaks["copy"]
    return Roof(product["flops"] / product["seconds"], copy["bytes"] / copy["seconds"])
