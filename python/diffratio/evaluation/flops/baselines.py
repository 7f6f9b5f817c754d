"""Baselines by name as a count of FLOPs knows them."""

from diffratio_kernels import kept_tokens

from ...baselines.named import UniformMod, parse_baseline
from ...baselines.tome import Tome
from .count import KeptTable, dsap_kept
from .shapes import TransformerShape

_MERGES = {"mlp": "tome", "attn": "tome-attn", "all": "tome-block"}


def baseline_kept(name: str, shape: TransformerShape) -> tuple[KeptTable, str]:
    """What `transformer_flops` is given for a baseline: kept tokens, and the method.

    Raises:
        ValueError: no such baseline.

    Example:
        >>> kept, method = baseline_kept("tome:mlp:0.2", PRESETS["pixart-xl-512"])
    """
    kept, method = block_kept(name, shape)
    return dsap_kept(shape, kept) if method == "atedm" else kept, method


def block_kept(name: str, shape: TransformerShape) -> tuple[int, str]:
    """The same of a block that merges or prunes: AT-EDM leaves some of them open in some steps."""
    found = parse_baseline(name)
    if isinstance(found, UniformMod):
        return kept_tokens(10 - round(10 * found.ratio), shape.tokens, found.rounding), "mod"
    return found.left(shape.tokens), _MERGES[found.merge] if isinstance(found, Tome) else "atedm"
