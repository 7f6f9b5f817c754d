"""Baselines by name, as `--baseline` takes them: the one place that knows the grammar.

tome:MERGE:RATIO        tome:mlp:0.2      apply_tome(model, 0.2, "mlp")
atedm:RATIO[:REFILL]    atedm:0.2         apply_atedm(model, 0.2)
mod:RATIO[:ROUNDING]    mod:0.2:floor     apply_diffratio(model, DiffRatioConfig(0.2, rounding="floor"))
"""

from dataclasses import dataclass

from diffratio_kernels.blocks.bins import ROUNDINGS

from ..config import DiffRatioConfig
from .atedm import REFILLS, AtEdm
from .calls import Baseline
from .tome import MERGES, Tome

GRAMMAR = "tome:attn|mlp|all:RATIO, atedm:RATIO[:copy|residual] or mod:RATIO[:ceil|floor]"


@dataclass(frozen=True)
class UniformMod:
    """Routers that keep the same part everywhere: uniform Mixture-of-Depths, which must be trained."""

    ratio: float
    rounding: str = "ceil"

    def __post_init__(self) -> None:
        DiffRatioConfig(self.ratio, rounding=self.rounding)  # complains

    @property
    def name(self) -> str:
        """As `parse_baseline` takes it."""
        return f"mod:{self.ratio:g}" + f":{self.rounding}" * (self.rounding != "ceil")


def parse_baseline(text: str) -> Baseline | UniformMod:
    """The baseline of a name.

    Args:
        text: tome:attn|mlp|all:RATIO, atedm:RATIO[:copy|residual] or mod:RATIO[:ceil|floor]; RATIO is the
            part of the tokens that merge, are pruned or are skipped.

    Returns:
        What `apply_baseline` puts on a model; `name` is its name.

    Raises:
        ValueError: no such name; the text says which there are.

    Example:
        >>> from diffratio.baselines import parse_baseline
        >>> parse_baseline("mod:0.2:floor").name
        'mod:0.2:floor'
    """
    kind, *words = text.split(":")
    try:
        match kind, words:
            case "tome", [merge, ratio] if merge in MERGES:
                return Tome(float(ratio), merge)
            case "atedm", [ratio]:
                return AtEdm(float(ratio))
            case "atedm", [ratio, refill] if refill in REFILLS:
                return AtEdm(float(ratio), refill)
            case "mod", [ratio]:
                return UniformMod(float(ratio))
            case "mod", [ratio, rounding] if rounding in ROUNDINGS:
                return UniformMod(float(ratio), rounding)
    except ValueError as error:
        raise ValueError(f"baseline={text!r}: {error}") from None
    raise ValueError(f"baseline={text!r} must be {GRAMMAR}")
