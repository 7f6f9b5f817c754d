"""Every family's blocks and models, a file each: BLOCKS and MODELS are functions that make one."""

from . import (
    auraflow,
    cogview,
    ernie_image,
    flux,
    hunyuan_dit,
    ideogram4,
    krea2,
    lumina2,
    minimax_h3,
    prx,
    z_image,
)

_FAMILIES = (
    auraflow,
    cogview,
    ernie_image,
    flux,
    hunyuan_dit,
    ideogram4,
    krea2,
    lumina2,
    minimax_h3,
    prx,
    z_image,
)
BLOCKS = {make.__name__: make for family in _FAMILIES for make in family.BLOCKS}
MODELS = {make.__name__.removesuffix("_model"): make for family in _FAMILIES for make in family.MODELS}
