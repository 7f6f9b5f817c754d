"""`diffratio train`: fine-tune a diffusion transformer to a compression target."""

from ..extras import on_first_use

_NAMES = {
    "arguments": ("ArgumentError", "TrainArguments"),
    "controller": ("RatioController",),
    "model": ("load_run",),
    "optimizer": ("parameter_groups",),
    "trainer": ("Trainer", "train"),
}
__all__ = sorted(name for names in _NAMES.values() for name in names)
# The command line shows its help without diffusers, accelerate and peft.
__getattr__ = on_first_use(__name__, _NAMES, "train")
