"""How other people's transformer blocks are taken apart: a spec per family, one file each."""

from diffratio_kernels.blocks.stream import (
    Activation,
    Call,
    CrossAttention,
    HeadNorm,
    KeysValues,
    Layout,
    Mlp,
    Parallel,
    Rope,
    SecondAttention,
    SelfAttention,
    Stream,
)

from .attention_modules import by_count
from .modules import ModuleSpec
from .registry import Spec, register_block_spec, spec_for

__all__ = [
    "Activation",
    "Call",
    "CrossAttention",
    "HeadNorm",
    "KeysValues",
    "Layout",
    "Mlp",
    "ModuleSpec",
    "Parallel",
    "Rope",
    "SecondAttention",
    "SelfAttention",
    "Spec",
    "Stream",
    "by_count",
    "register_block_spec",
    "spec_for",
]
