"""LTX-2: with a text mask, modulations of every token, gates of heads and modulated texts (2.3), joined or
split rope, without attention (guidance), without the other stream."""

import torch
from diffusers import LTX2VideoTransformer3DModel
from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformerBlock

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, N, angles, awake, sample

AUDIO, AUDIO_WIDTH = 7, 8
E = HEADS * AUDIO_WIDTH


def _tables(rows: int, width: int, split: bool):
    each = [angles(rows, width, twice=not split, seed=10 * rows + b) for b in range(BATCH)]
    tables = tuple(torch.stack(parts) for parts in zip(*each, strict=True))
    return tuple(t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in tables) if split else tables


def _case(per_token=False, newer=False, split=False, perturbed=False, isolated=False, **more) -> Case:
    """newer: with what LTX-2.3 has besides."""
    adaln = {"video_cross_attn_adaln": True, "audio_cross_attn_adaln": True, "video_gated_attn": True,
             "audio_gated_attn": True, "perturbed_attn": True}  # fmt: skip
    block = LTX2VideoTransformerBlock(
        D, HEADS, WIDTH, D, E, HEADS, AUDIO_WIDTH, E, rope_type="split" if split else "interleaved",
        **(adaln if newer else {}), **more,
    )  # fmt: skip
    tokens, params = N if per_token else 1, 9 if newer else 6
    valid = torch.ones(BATCH, TEXT, dtype=torch.bool)
    valid[0, 1], valid[1, 3:] = False, False
    mask = torch.where(valid, 0.0, -10000.0)[:, None]
    inputs = {
        "hidden_states": torch.randn(BATCH, N, D),
        "audio_hidden_states": torch.randn(BATCH, AUDIO, E),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, D),
        "audio_encoder_hidden_states": torch.randn(BATCH, TEXT, E),
        "temb": torch.randn(BATCH, tokens, params * D),
        "temb_audio": torch.randn(BATCH, AUDIO if per_token else 1, params * E),
        "temb_ca_scale_shift": torch.randn(BATCH, tokens, 4 * D),
        "temb_ca_audio_scale_shift": torch.randn(BATCH, 1, 4 * E),
        "temb_ca_gate": torch.randn(BATCH, tokens, D),
        "temb_ca_audio_gate": torch.randn(BATCH, 1, E),
        "temb_prompt": torch.randn(BATCH, 1, 2 * D) if newer and per_token else None,
        "temb_prompt_audio": torch.randn(BATCH, 1, 2 * E) if newer and per_token else None,
        "encoder_attention_mask": mask,
        "audio_encoder_attention_mask": mask,
        "perturbation_mask": torch.zeros(BATCH, 1, 1) if perturbed else None,
    }
    video = {"video_rotary_emb": _tables(N, D, split), "ca_video_rotary_emb": _tables(N, E, split)}
    audio = {"audio_rotary_emb": _tables(AUDIO, E, split), "ca_audio_rotary_emb": _tables(AUDIO, E, split)}
    flags = {"all_perturbed": perturbed, "use_a2v_cross_attention": not isolated,
             "use_v2a_cross_attention": not isolated}  # fmt: skip

    def alone(b, kept):
        given = {name: None if value is None else sample(value, b) for name, value in inputs.items()}
        given["hidden_states"] = given["hidden_states"][:, kept]
        for name in ("temb", "temb_ca_scale_shift", "temb_ca_gate") if per_token else ():
            given[name] = given[name][:, kept]
        ropes = {name: tuple(sample(t, b) for t in tables) for name, tables in audio.items()}
        dim = 2 if split else 1
        for name, tables in video.items():
            ropes[name] = tuple(sample(t, b).index_select(dim, kept) for t in tables)
        return given | ropes | flags

    return Case(awake(block), inputs | video | audio | flags, alone, block.ff, lambda out: out,
                told={"encoder_attention_mask": valid})  # fmt: skip


def ltx2():
    return _case()


def ltx2_i2v():
    return _case(per_token=True)


def ltx2_newer():
    return _case(newer=True, split=True)


def ltx2_newer_i2v():
    return _case(newer=True, split=True, per_token=True)


def ltx2_perturbed():
    return _case(newer=True, perturbed=True)


def ltx2_isolated():
    return _case(newer=True, isolated=True, elementwise_affine=True)


def _model(newer=False, **more):
    model = LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=HEADS, attention_head_dim=WIDTH,
        cross_attention_dim=D, audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=HEADS,
        audio_attention_head_dim=AUDIO_WIDTH, audio_cross_attention_dim=E, num_layers=2, caption_channels=8,
        gated_attn=newer, cross_attn_mod=newer, audio_gated_attn=newer, audio_cross_attn_mod=newer,
        rope_type="split" if newer else "interleaved", perturbed_attn=newer,
    )  # fmt: skip
    mask = torch.ones(BATCH, TEXT, dtype=torch.bool)
    mask[1, 3:] = False
    text, timestep = torch.randn(BATCH, TEXT, 8), torch.tensor([300.0, 700.0])
    return model, {
        "hidden_states": torch.randn(BATCH, 24, 4), "audio_hidden_states": torch.randn(BATCH, AUDIO, 4),
        "encoder_hidden_states": text, "audio_encoder_hidden_states": text, "timestep": timestep,
        "sigma": timestep, "encoder_attention_mask": mask, "audio_encoder_attention_mask": mask,
        "num_frames": 2, "height": 3, "width": 4, "audio_num_frames": AUDIO, "use_cross_timestep": newer,
    } | more  # fmt: skip


def ltx2_model():
    return _model()


def ltx2_newer_model():
    timestep = torch.tensor([300.0, 700.0])[:, None].repeat(1, 24)
    timestep[:, :12] = 0  # a frame that is given
    return _model(newer=True, timestep=timestep, audio_timestep=torch.tensor([300.0, 700.0]))


def ltx2_guidance_model():
    return _model(newer=True, spatio_temporal_guidance_blocks=[1])


ltx2_guidance_model.graphs = "with perturbed samples its model asks whether all are"

BLOCKS = (ltx2, ltx2_i2v, ltx2_newer, ltx2_newer_i2v, ltx2_perturbed, ltx2_isolated)
MODELS = (ltx2_model, ltx2_newer_model, ltx2_guidance_model)
