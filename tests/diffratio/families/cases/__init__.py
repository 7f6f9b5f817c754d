"""Every family's blocks and models, a file each: BLOCKS and MODELS are functions that make one."""

from . import chroma, flux, flux2, flux3, hunyuan_video, like_flux, sd3

_FAMILIES = (chroma, flux, flux2, flux3, hunyuan_video, like_flux, sd3)
BLOCKS = {make.__name__: make for family in _FAMILIES for make in family.BLOCKS}
MODELS = {make.__name__.removesuffix("_model"): make for family in _FAMILIES for make in family.MODELS}
