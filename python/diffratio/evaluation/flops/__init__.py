"""How many FLOPs a diffusion transformer spends: truly, and as the paper counts them."""

from .count import (
    FlopsReport,
    KeptTable,
    block_flops,
    dsap_kept,
    kept_table,
    transformer_flops,
)
from .published import rows
from .shapes import PRESETS, TransformerShape
from .table import JOINED, METHODS, Cost, Step, block_steps, products, step_cost

__all__ = [
    "JOINED",
    "METHODS",
    "PRESETS",
    "Cost",
    "FlopsReport",
    "KeptTable",
    "Step",
    "TransformerShape",
    "block_flops",
    "block_steps",
    "dsap_kept",
    "kept_table",
    "products",
    "rows",
    "step_cost",
    "transformer_flops",
]
