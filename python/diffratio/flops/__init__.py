"""How many FLOPs a diffusion transformer spends: truly, and as the paper counts them."""

from .count import METHODS, FlopsReport, block_flops, dsap_kept, kept_tokens, transformer_flops
from .published import PublishedRow, rows
from .shapes import PRESETS, TransformerShape

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
    "transformer_flops",
]
