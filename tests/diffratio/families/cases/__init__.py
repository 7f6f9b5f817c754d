"""Every family's blocks and models, a file each: BLOCKS and MODELS are functions that make one."""

from . import (
    allegro,
    anyflow,
    cogvideox,
    cogview,
    cosmos,
    easyanimate,
    flux,
    hidream,
    joyimage,
    kandinsky,
    ltx,
    mochi,
    nucleus_moe,
    qwen_image,
    qwenimage21,
    wan,
)

_FAMILIES = (
    allegro,
    anyflow,
    cogvideox,
    cogview,
    cosmos,
    easyanimate,
    flux,
    hidream,
    joyimage,
    kandinsky,
    ltx,
    mochi,
    nucleus_moe,
    qwen_image,
    qwenimage21,
    wan,
)
BLOCKS = {make.__name__: make for family in _FAMILIES for make in family.BLOCKS}
MODELS = {make.__name__.removesuffix("_model"): make for family in _FAMILIES for make in family.MODELS}
