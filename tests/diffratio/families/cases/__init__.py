"""Every family's blocks and models, a file each: BLOCKS and MODELS are functions that make one."""

from . import cogvideox, flux, ltx, ltx2, qwen_image, wan

_FAMILIES = (cogvideox, flux, ltx, ltx2, qwen_image, wan)
BLOCKS = {make.__name__: make for family in _FAMILIES for make in family.BLOCKS}
MODELS = {make.__name__.removesuffix("_model"): make for family in _FAMILIES for make in family.MODELS}
