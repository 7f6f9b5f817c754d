"""Spend compute only on the tokens that need it: routing for diffusers' diffusion transformers."""

from importlib import import_module

from .extras import on_first_use

_NAMES = {
    "config": ("DiffRatioConfig",),
    "families": (
        "Activation",
        "Call",
        "CrossAttention",
        "HeadNorm",
        "KeysValues",
        "Layout",
        "Mlp",
        "Parallel",
        "Rope",
        "SecondAttention",
        "SelfAttention",
        "Spec",
        "Stream",
        "by_count",
        "register_block_spec",
    ),
    "routing.adapter": ("load_diffratio", "save_diffratio"),
    "routing.apply": ("apply_diffratio", "disable_diffratio", "enable_diffratio", "remove_diffratio"),
    "routing.graphs": ("cuda_graphs",),
    "routing.ratios": ("diffratio_loss", "freeze_ratios", "learn_ratios"),
    "routing.recording": ("record_routing",),
    "routing.summary": ("summary",),
    "routing.text_cache": ("cache_text",),
}
__all__ = sorted(name for names in _NAMES.values() for name in names)
_get = on_first_use(__name__, _NAMES, "diffusers")


def __getattr__(name: str):
    """Import on first use: what needs torch alone works without diffusers, the rest says what to install."""
    return import_module("diffratio_kernels").__version__ if name == "__version__" else _get(name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
