"""What people run instead of routers: training-free token merging and pruning on the same models."""

from ..extras import on_first_use

_NAMES = {
    "apply": ("apply_atedm", "apply_baseline", "apply_tome", "remove_baseline"),
    "named": ("parse_baseline",),
}
__all__ = sorted(name for names in _NAMES.values() for name in names)
__getattr__ = on_first_use(__name__, _NAMES, "diffusers")
