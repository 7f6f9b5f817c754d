"""`diffratio train`: fine-tune a diffusion transformer to a compression target."""

from importlib import import_module

_HOMES = {
    "ArgumentError": "arguments",
    "RatioController": "controller",
    "TrainArguments": "arguments",
    "Trainer": "trainer",
    "load_run": "result",
    "parameter_groups": "optimizer",
    "train": "trainer",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """Import on first use: the command line shows its help without diffusers, accelerate and peft."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
