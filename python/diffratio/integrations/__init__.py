"""How other people's transformer blocks are taken apart: one spec per block class."""

from .basic_transformer_block import BasicTransformerBlockSpec
from .spec import BlockInputs, BlockSpec, register_block_spec, spec_for

__all__ = ["BasicTransformerBlockSpec", "BlockInputs", "BlockSpec", "register_block_spec", "spec_for"]
