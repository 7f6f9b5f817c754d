"""Spend compute only on the tokens that need it: routing for diffusers' diffusion transformers."""

from importlib import import_module

from .extras import missing

_HOMES = {
    "BlockInputs": "integrations",
    "BlockSpec": "integrations",
    "DiffRatioConfig": "config",
    "apply_diffratio": "patch",
    "cache_text": "cached_text",
    "cuda_graphs": "graphs",
    "diffratio_loss": "ratios",
    "disable_diffratio": "patch",
    "enable_diffratio": "patch",
    "freeze_ratios": "ratios",
    "learn_ratios": "ratios",
    "load_diffratio": "adapter",
    "record_routing": "patch",
    "register_block_spec": "integrations",
    "remove_diffratio": "patch",
    "save_diffratio": "adapter",
    "summary": "summary",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """Import on first use: what needs torch alone works without diffusers, the rest says what to install."""
    if name == "__version__":
        return import_module("diffratio_kernels").__version__
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        raise missing(f"{__name__}.{name}", error, "diffusers") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
