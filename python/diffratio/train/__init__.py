"""`diffratio train`: fine-tune a diffusion transformer to a compression target."""

from importlib import import_module

from ..extras import missing

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
    try:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        raise missing(f"{__name__}.{name}", error, "train") from error
    globals()[name] = value
    return value
