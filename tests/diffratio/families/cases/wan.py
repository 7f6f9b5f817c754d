"""Wan: text to video, with an image's tokens in front of the text, a modulation of every token, joined
projections; and what is made of it: SkyReels V2, VACE, ChronoEdit, Wan-Animate."""

import torch
from diffusers import (
    ChronoEditTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanAnimateTransformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from diffusers.models.transformers import transformer_chronoedit, transformer_wan_animate
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2TransformerBlock
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformerBlock

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, N, angles, awake, sample


def _case(kind=WanTransformerBlock, per_token: int | None = None, image: int = 0, norm=True) -> Case:
    """per_token: the dimension of the tokens in `temb`, where they have a modulation each."""
    block = kind(D, 3 * D, HEADS, cross_attn_norm=norm, added_kv_proj_dim=D if image else None)
    temb = torch.randn(BATCH, 6, D)
    if per_token is not None:
        temb = torch.randn(BATCH, 6, N, D) if per_token == 2 else torch.randn(BATCH, N, 6, D)
    inputs = {
        "hidden_states": torch.randn(BATCH, N, D),
        "encoder_hidden_states": torch.randn(BATCH, 512 + image if image else TEXT, D),
        "temb": temb,
        "rotary_emb": tuple(table[None, :, None] for table in angles(N)),
    }

    def alone(b, kept):
        own = sample(temb, b)
        return {
            "hidden_states": inputs["hidden_states"][b : b + 1, kept],
            "encoder_hidden_states": sample(inputs["encoder_hidden_states"], b),
            "temb": own if per_token is None else own.index_select(per_token, kept),
            "rotary_emb": tuple(table[:, kept] for table in inputs["rotary_emb"]),
        }

    return Case(awake(block), inputs, alone, block.ffn)


def wan():
    return _case()


def wan_without_norm():
    return _case(norm=False)


def wan_i2v():
    return _case(image=7)


def wan_ti2v():
    return _case(per_token=1)


def wan_fused():
    case = _case(image=7)
    for attention in (case.block.attn1, case.block.attn2):
        attention.fuse_projections()
        for name, joined in attention.named_children():
            if name in ("to_qkv", "to_kv", "to_added_kv"):
                torch.nn.init.normal_(joined.weight, std=0.2)  # not what the parts are any more
    return case


def chronoedit():
    return _case(transformer_chronoedit.WanTransformerBlock)


def wan_animate():
    return _case(transformer_wan_animate.WanTransformerBlock)


def _skyreels(**more) -> Case:
    case = _case(SkyReelsV2TransformerBlock, **more)
    alone = case.alone
    case.inputs["attention_mask"] = None
    case.alone = lambda b, kept: alone(b, kept) | {"attention_mask": None}
    return case


def skyreels():
    return _skyreels()


def skyreels_forcing():
    return _skyreels(per_token=2)


def wan_vace():
    """One with an output projection; an input projection makes other tokens of those that come in."""

    def kind(*args, **more):
        return WanVACETransformerBlock(*args, apply_output_projection=True, **more)

    case = _case(kind)
    alone, video = case.alone, torch.randn(BATCH, N, D)
    case.inputs |= {"control_hidden_states": case.inputs["hidden_states"], "hidden_states": video}

    def alone_with_control(b, kept):
        given = alone(b, kept)
        control = case.inputs["control_hidden_states"][b : b + 1, kept]
        return given | {"hidden_states": video[b : b + 1, kept], "control_hidden_states": control}

    case.alone, case.tokens = alone_with_control, "control_hidden_states"
    case.parts = lambda out: (out[1], None)
    return case


SIZES = {
    "num_attention_heads": HEADS, "attention_head_dim": WIDTH, "in_channels": 4, "out_channels": 4,
    "text_dim": 8, "freq_dim": 16, "ffn_dim": 48, "num_layers": 2,
}  # fmt: skip


def _inputs(frames: int = 3, text: int = TEXT):
    return {
        "hidden_states": torch.randn(BATCH, 4, frames, 4, 4), "timestep": torch.tensor([300, 700]),
        "encoder_hidden_states": torch.randn(BATCH, text, 8),
    }  # fmt: skip


def wan_model():
    return WanTransformer3DModel(**SIZES), _inputs()


def wan_i2v_model():
    model = WanTransformer3DModel(**SIZES, image_dim=8, added_kv_proj_dim=D)
    return model, _inputs(text=512) | {"encoder_hidden_states_image": torch.randn(BATCH, 6, 8)}


def wan_ti2v_model():
    timestep = torch.tensor([300, 700])[:, None].repeat(1, 12)
    timestep[:, :4] = 0  # a frame that is given
    return WanTransformer3DModel(**SIZES), _inputs() | {"timestep": timestep}


def wan_vace_model():
    model = WanVACETransformer3DModel(**SIZES, vace_layers=[0, 1], vace_in_channels=6)
    return model, _inputs() | {"control_hidden_states": torch.randn(BATCH, 6, 3, 4, 4)}


def skyreels_model():
    return SkyReelsV2Transformer3DModel(**SIZES), _inputs()


def skyreels_forcing_model():
    timestep = torch.tensor([[100, 200, 300], [500, 600, 700]])
    more = {"timestep": timestep, "enable_diffusion_forcing": True}
    return SkyReelsV2Transformer3DModel(**SIZES), _inputs() | more


def chronoedit_model():
    return ChronoEditTransformer3DModel(**SIZES, rope_temporal_skip_len=3), _inputs()


def wan_animate_model():
    model = WanAnimateTransformer3DModel(
        **SIZES | {"in_channels": 12}, latent_channels=4, image_dim=8, added_kv_proj_dim=D,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8}, motion_encoder_size=16, motion_style_dim=8,
        motion_dim=4, motion_encoder_dim=8, face_encoder_hidden_dim=16, face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )  # fmt: skip
    return model, _inputs(text=512) | {
        "hidden_states": torch.randn(BATCH, 12, 4, 4, 4),
        "pose_hidden_states": torch.randn(BATCH, 4, 3, 4, 4),
        "encoder_hidden_states_image": torch.randn(BATCH, 6, 8),
        "face_pixel_values": torch.randn(BATCH, 3, 9, 16, 16),
    }


BLOCKS = (wan, wan_without_norm, wan_i2v, wan_ti2v, wan_fused, chronoedit, wan_animate, skyreels,
          skyreels_forcing, wan_vace)  # fmt: skip
MODELS = (wan_model, wan_i2v_model, wan_ti2v_model, wan_vace_model, skyreels_model, skyreels_forcing_model,
          chronoedit_model, wan_animate_model)  # fmt: skip
