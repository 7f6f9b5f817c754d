"""ConsisID: CogVideoX's blocks; what it adds of a face stands between them."""

from diffusers.models.transformers.consisid_transformer_3d import ConsisIDBlock

from .cogvideox import CogVideoXSpec
from .registry import register_block_spec

register_block_spec(ConsisIDBlock, CogVideoXSpec())
