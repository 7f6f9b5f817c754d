"""How many FLOPs a diffusion transformer spends: truly, and as the paper counts them."""

from .count import METHODS, FlopsReport, block_flops, dsap_kept, kept_tokens, transformer_flops
from .published import PublishedRow, rows
from .shapes import PRESETS, TransformerShape
from .training import training_flops

__all__ = [
    "METHODS",
    "PRESETS",
    "FlopsReport",
    "PublishedRow",
    "TransformerShape",
    "block_flops",
    "dsap_kept",
    "kept_tokens",
    "rows",
    "training_flops",
    "transformer_flops",
]
