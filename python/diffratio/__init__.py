"""Spend compute only on the tokens that need it: routing for diffusers' diffusion transformers."""

from importlib import import_module

from .extras import missing

_HOMES = {
    "Call": "families",
    "CrossAttention": "families",
    "DiffRatioConfig": "config",
    "Mlp": "families",
    "SelfAttention": "families",
    "Spec": "families",
    "Stream": "families",
    "apply_diffratio": "routing.apply",
    "by_count": "families",
    "cache_text": "routing.text_cache",
    "cuda_graphs": "routing.graphs",
    "diffratio_loss": "routing.ratios",
    "disable_diffratio": "routing.apply",
    "enable_diffratio": "routing.apply",
    "freeze_ratios": "routing.ratios",
    "learn_ratios": "routing.ratios",
    "load_diffratio": "routing.adapter",
    "record_routing": "routing.recording",
    "register_block_spec": "families",
    "remove_diffratio": "routing.apply",
    "save_diffratio": "routing.adapter",
    "summary": "routing.summary",
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
