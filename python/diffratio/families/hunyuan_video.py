"""HunyuanVideo, its image-to-video models and FramePack: joint blocks of video and text, then single blocks
of one sequence [video, text]; positions are those of the video alone, text is masked."""

import torch
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoAttnProcessor2_0,
    HunyuanVideoSingleTransformerBlock,
    HunyuanVideoTokenReplaceAdaLayerNormZero,
    HunyuanVideoTokenReplaceAdaLayerNormZeroSingle,
    HunyuanVideoTokenReplaceSingleTransformerBlock,
    HunyuanVideoTokenReplaceTransformerBlock,
    HunyuanVideoTransformerBlock,
)

from .hunyuan_kind import JointSpec, SingleSpec
from .modules import told, two_kinds, zero_modulation
from .registry import register_block_spec


class _Video:
    processors = (HunyuanVideoAttnProcessor2_0,)

    def layout(self, model, given):
        """How many tokens the video has that FramePack makes: those of its past come before them."""
        if not hasattr(model, "clean_x_embedder"):
            return None
        frames, height, width = given["hidden_states"].shape[2:]
        size, config = model.config.patch_size, model.config
        return (frames // config.patch_size_t) * (height // size) * (width // size)

    def conditions(self, block, x, num_tokens):
        made = told(block, self)
        return 0 if made is None else x.shape[1] - made


class HunyuanVideoSpec(_Video, JointSpec):
    pass


class HunyuanVideoSingleSpec(_Video, SingleSpec):
    pass


class _TokenReplace:
    """The first frame is a condition, with a modulation of its own."""

    processors = (HunyuanVideoAttnProcessor2_0,)

    def conditions(self, block, x, num_tokens):
        return num_tokens if num_tokens < x.shape[1] else 0

    def modulated(self, norm, x, temb, replaced, num_tokens):
        both = [zero_modulation(norm, emb, self.vectors) for emb in (replaced, temb)]
        return torch.stack(both, dim=1).flatten(0, 1), two_kinds(x, num_tokens)


class TokenReplaceSpec(_TokenReplace, JointSpec):
    plain = JointSpec.plain | {"norm1": HunyuanVideoTokenReplaceAdaLayerNormZero}


class TokenReplaceSingleSpec(_TokenReplace, SingleSpec):
    plain = SingleSpec.plain | {"norm": HunyuanVideoTokenReplaceAdaLayerNormZeroSingle}


register_block_spec(HunyuanVideoTransformerBlock, HunyuanVideoSpec())
register_block_spec(HunyuanVideoSingleTransformerBlock, HunyuanVideoSingleSpec())
register_block_spec(HunyuanVideoTokenReplaceTransformerBlock, TokenReplaceSpec())
register_block_spec(HunyuanVideoTokenReplaceSingleTransformerBlock, TokenReplaceSingleSpec())
