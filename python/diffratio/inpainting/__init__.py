"""Repainting the masked part of a picture, at the cost of that part."""

from ..extras import on_first_use

_NAMES = {
    "edit": ("inpaint", "pipeline_of"),
    "lazy": ("LazyPixArt",),
    "load": ("load_transformer",),
    "pipeline": ("DiffRatioInpaintPipeline",),
    "regenerate": ("regenerate_from_pixart",),
    "systems": ("SYSTEMS", "system_of"),
}
__all__ = sorted(name for names in _NAMES.values() for name in names)
__getattr__ = on_first_use(__name__, _NAMES, "diffusers")
