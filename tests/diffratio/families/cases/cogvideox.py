"""CogVideoX with and without positions in attention, with joined projections; ConsisID."""

import torch
from diffusers import CogVideoXTransformer3DModel, ConsisIDTransformer3DModel
from diffusers.models.attention_processor import FusedCogVideoXAttnProcessor2_0
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from diffusers.models.transformers.consisid_transformer_3d import ConsisIDBlock

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, N, angles, awake, sample


def _case(kind=CogVideoXBlock, rope: bool = True, **more) -> Case:
    block = kind(D, HEADS, WIDTH, 24, **more)
    inputs = {
        "hidden_states": torch.randn(BATCH, N, D),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, D),
        "temb": torch.randn(BATCH, 24),
        "image_rotary_emb": angles(N) if rope else None,
    }

    def alone(b, kept):
        return {
            "hidden_states": inputs["hidden_states"][b : b + 1, kept],
            "encoder_hidden_states": sample(inputs["encoder_hidden_states"], b),
            "temb": sample(inputs["temb"], b),
            "image_rotary_emb": tuple(table[kept] for table in inputs["image_rotary_emb"]) if rope else None,
        }

    return Case(awake(block), inputs, alone, block.ff, lambda out: out, mlp_start=lambda b: TEXT)


def cogvideox():
    return _case(attention_bias=True)


def cogvideox_sines():
    return _case(rope=False, norm_elementwise_affine=False, qk_norm=False)


def cogvideox_fused():
    case = _case(attention_bias=True)
    with torch.no_grad():
        case.block.attn1.fuse_projections()
    torch.nn.init.normal_(case.block.attn1.to_qkv.weight, std=0.2)  # not what the parts are any more
    case.block.attn1.set_processor(FusedCogVideoXAttnProcessor2_0())
    return case


def consisid():
    return _case(ConsisIDBlock, attention_bias=True)


SIZES = {
    "num_attention_heads": HEADS, "attention_head_dim": WIDTH, "in_channels": 4, "out_channels": 4,
    "time_embed_dim": 8, "text_embed_dim": 8, "num_layers": 2, "sample_width": 8, "sample_height": 8,
    "sample_frames": 9, "patch_size": 2, "max_text_seq_length": TEXT,
    "use_rotary_positional_embeddings": True,
}  # fmt: skip


def _inputs():
    return {
        "hidden_states": torch.randn(BATCH, 3, 4, 8, 8), "encoder_hidden_states": torch.randn(BATCH, TEXT, 8),
        "timestep": torch.tensor([300, 700]), "image_rotary_emb": angles(48),
    }  # fmt: skip


def cogvideox_model():
    return CogVideoXTransformer3DModel(**SIZES), _inputs()


def consisid_model():
    model = ConsisIDTransformer3DModel(
        **SIZES, is_train_face=True, cross_attn_interval=1, cross_attn_dim_head=8, cross_attn_num_heads=2,
        LFE_id_dim=8, LFE_vit_dim=16, LFE_depth=5, LFE_dim_head=8, LFE_num_heads=2, LFE_num_id_token=2,
        LFE_num_querie=4, LFE_output_dim=21,
    )  # fmt: skip
    faces = {"id_cond": torch.randn(BATCH, 8), "id_vit_hidden": [torch.randn(BATCH, 6, 16)] * 5}
    return model, _inputs() | faces


BLOCKS = (cogvideox, cogvideox_sines, cogvideox_fused, consisid)
MODELS = (cogvideox_model, consisid_model)
