"""How other people's transformer blocks are taken apart: a spec per family, one file each."""

from diffratio_kernels.blocks.stream import Call, CrossAttention, Mlp, SelfAttention, Stream

from .attention_modules import by_count
from .basic_transformer import BasicTransformerSpec
from .registry import Spec, register_block_spec, spec_for

__all__ = [
    "BasicTransformerSpec",
    "Call",
    "CrossAttention",
    "Mlp",
    "SelfAttention",
    "Spec",
    "Stream",
    "by_count",
    "register_block_spec",
    "spec_for",
]
