"""Spend compute only on the tokens that need it: routing for diffusers' diffusion transformers."""

from .adapter import load_diffratio, save_diffratio
from .config import DiffRatioConfig
from .integrations import BlockInputs, BlockSpec, register_block_spec
from .patch import (
    apply_diffratio,
    disable_diffratio,
    enable_diffratio,
    record_routing,
    remove_diffratio,
)
from .summary import summary

__all__ = [
    "BlockInputs",
    "BlockSpec",
    "DiffRatioConfig",
    "apply_diffratio",
    "disable_diffratio",
    "enable_diffratio",
    "load_diffratio",
    "record_routing",
    "register_block_spec",
    "remove_diffratio",
    "save_diffratio",
    "summary",
]
