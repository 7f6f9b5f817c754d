"""AnyFlow, and Helios with and without a history, seen by the text and amplified or not."""

import torch
from diffusers import AnyFlowTransformer3DModel, HeliosTransformer3DModel
from diffusers.models.transformers.transformer_anyflow import AnyFlowTransformerBlock
from diffusers.models.transformers.transformer_helios import HeliosTransformerBlock

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, N, angles, awake, sample


def anyflow():
    block = awake(AnyFlowTransformerBlock(D, 2 * D, HEADS, cross_attn_norm=True))
    turns = torch.complex(*angles(N, twice=False))[None, None]
    inputs = {
        "hidden_states": torch.randn(BATCH, N, D), "encoder_hidden_states": torch.randn(BATCH, TEXT, D),
        "temb": torch.randn(BATCH, N, 6, D), "rotary_emb": {"query": turns, "key": turns},
        "attention_mask": None,
    }  # fmt: skip

    def alone(b, kept):
        one = {name: sample(value, b) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        one["hidden_states"], one["temb"] = one["hidden_states"][:, kept], one["temb"][:, kept]
        rope = dict.fromkeys(("query", "key"), turns[:, :, kept])
        return one | {"rotary_emb": rope, "attention_mask": None}

    return Case(block, inputs, alone, block.ffn)


def _helios(history, of_tokens=True, **options) -> Case:
    block = awake(HeliosTransformerBlock(D, 2 * D, HEADS, cross_attn_norm=True, **options))
    total = history + N
    rope = torch.cat(angles(BATCH * total), dim=1).view(BATCH, total, 2 * WIDTH)
    inputs = {
        "hidden_states": torch.randn(BATCH, total, D), "encoder_hidden_states": torch.randn(BATCH, TEXT, D),
        "temb": torch.randn(BATCH, total, 6, D) if of_tokens else torch.randn(BATCH, 6, D),
        "rotary_emb": rope, "original_context_length": N,
    }  # fmt: skip

    def alone(b, kept):
        rows = torch.cat([torch.arange(history), history + kept])
        one = {name: sample(value, b) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        for name in ("hidden_states", "rotary_emb", *(("temb",) if of_tokens else ())):
            one[name] = one[name][:, rows]
        return one | {"original_context_length": len(kept)}

    case = Case(block, inputs, alone, block.ffn, image=lambda b: slice(history, total))
    case.mlp_start = lambda b: history
    return case


def helios():
    return _helios(4, guidance_cross_attn=True)


def helios_seen():
    return _helios(4, is_amplify_history=True)


def helios_amplified():
    return _helios(4, guidance_cross_attn=True, is_amplify_history=True, history_scale_mode="scalar")


def helios_alone():
    return _helios(0, of_tokens=False, guidance_cross_attn=True)


def anyflow_model():
    model = AnyFlowTransformer3DModel(
        num_attention_heads=HEADS, attention_head_dim=WIDTH, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=2 * D, num_layers=2, rope_max_seq_len=16,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(BATCH, 2, 4, 8, 8), "encoder_hidden_states": torch.randn(BATCH, TEXT, 8),
        "timestep": torch.tensor([[300.0] * 2, [700.0] * 2]), "r_timestep": torch.zeros(BATCH, 2),
    }  # fmt: skip


def helios_model():
    model = HeliosTransformer3DModel(
        num_attention_heads=HEADS, attention_head_dim=WIDTH, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=2 * D, num_layers=2, rope_dim=(8, 4, 4), is_amplify_history=True,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(BATCH, 4, 2, 8, 8), "encoder_hidden_states": torch.randn(BATCH, TEXT, 8),
        "timestep": torch.tensor([300.0, 700.0]), "indices_hidden_states": torch.tensor([[1, 2]] * BATCH),
        "latents_history_short": torch.randn(BATCH, 4, 1, 8, 8),
        "indices_latents_history_short": torch.tensor([[0]] * BATCH),
    }  # fmt: skip


BLOCKS = (anyflow, helios, helios_seen, helios_amplified, helios_alone)
MODELS = (anyflow_model, helios_model)
