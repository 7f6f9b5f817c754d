"""FLUX.1: double and single blocks, a whole model, and one with Kontext's reference tokens."""

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, N, angles, awake, sample


def text_image(out):
    return out[1], out[0]


def ids_of(references: int) -> torch.Tensor:
    """Positions whose first number tells the image from the references behind it."""
    ids = torch.zeros(N + references, 3)
    ids[N:, 0] = 1
    return ids


def some_text() -> torch.Tensor:
    """A mask [B, text + image] that leaves out tokens of the texts, first and last ones."""
    mask = torch.ones(BATCH, TEXT + N, dtype=torch.bool)
    mask[0, 0] = mask[1, 3:TEXT] = False
    return mask


def joint_case(block, modulation: dict[str, torch.Tensor], mlp, references: int = 0, masked=None) -> Case:
    """Of a block that takes image, text, one rope table [text, image] and modulation tensors.

    masked: (a mask [b, text + image]) -> inputs of the block.
    """
    mask = some_text()
    inputs = {
        "hidden_states": torch.randn(BATCH, N + references, D),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, D),
        "image_rotary_emb": angles(TEXT + N + references),
    } | modulation | ({} if masked is None else masked(mask))  # fmt: skip

    def alone(b, kept):
        kept = torch.cat([kept, torch.arange(N, N + references)])
        rows = torch.cat([torch.arange(TEXT), TEXT + kept])
        return {
            "hidden_states": inputs["hidden_states"][b : b + 1, kept],
            "encoder_hidden_states": sample(inputs["encoder_hidden_states"], b),
            "image_rotary_emb": tuple(table[rows] for table in inputs["image_rotary_emb"]),
        } | {name: sample(value, b) for name, value in modulation.items()} | (
            {} if masked is None else masked(mask[b : b + 1, rows])
        )  # fmt: skip

    case = Case(awake(block), inputs, alone, mlp, text_image, told={"img_ids": ids_of(references)})
    case.text_valid = None if masked is None else mask[:, :TEXT]
    return case


def sequence_case(block, modulation: dict[str, torch.Tensor], mlp, references: int = 0, masked=None) -> Case:
    """The same of a block that is given one sequence [text, image], and returns it."""
    mask = some_text()
    inputs = {
        "hidden_states": torch.randn(BATCH, TEXT + N + references, D),
        "image_rotary_emb": angles(TEXT + N + references),
    } | modulation | ({} if masked is None else masked(mask))  # fmt: skip

    def alone(b, kept):
        places = torch.arange(TEXT + N + references)
        rows = torch.cat([places[:TEXT], TEXT + kept, places[TEXT + N :]])
        return {
            "hidden_states": inputs["hidden_states"][b : b + 1, rows],
            "image_rotary_emb": tuple(table[rows] for table in inputs["image_rotary_emb"]),
        } | {name: sample(value, b) for name, value in modulation.items()} | (
            {} if masked is None else masked(mask[b : b + 1, rows])
        )  # fmt: skip

    told = {"img_ids": ids_of(references), "encoder_hidden_states": torch.zeros(BATCH, TEXT, D)}
    case = Case(awake(block), inputs, alone, mlp, told=told, valid=None if masked is None else mask)
    case.image, case.mlp_start = lambda b: slice(TEXT, TEXT + N), lambda b: TEXT
    return case


def flux_double():
    block = FluxTransformerBlock(D, HEADS, WIDTH)
    return joint_case(block, {"temb": torch.randn(BATCH, D)}, block.ff)


def flux_kontext():
    block = FluxTransformerBlock(D, HEADS, WIDTH)
    return joint_case(block, {"temb": torch.randn(BATCH, D)}, block.ff, references=4)


def flux_single():
    block = FluxSingleTransformerBlock(D, HEADS, WIDTH)
    case = joint_case(block, {"temb": torch.randn(BATCH, D)}, block.act_mlp)
    case.mlp_start = lambda b: TEXT
    return case


def flux_kontext_single():
    block = FluxSingleTransformerBlock(D, HEADS, WIDTH)
    case = joint_case(block, {"temb": torch.randn(BATCH, D)}, block.act_mlp, references=4)
    case.mlp_start = lambda b: TEXT
    return case


def tiny_options() -> dict:
    """What a tiny model of FLUX.1's kind is made of."""
    return {
        "patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 8,
        "attention_head_dim": WIDTH, "num_attention_heads": HEADS, "axes_dims_rope": (4, 4, 8),
    }  # fmt: skip


def tiny_inputs() -> dict:
    """What it is given."""
    ids = torch.zeros(36, 3)
    ids[:, 1], ids[:, 2] = torch.arange(36) // 6, torch.arange(36) % 6
    return {
        "hidden_states": torch.randn(BATCH, 36, 4), "encoder_hidden_states": torch.randn(BATCH, TEXT, 8),
        "timestep": torch.tensor([0.3, 0.7]), "img_ids": ids, "txt_ids": torch.zeros(TEXT, 3),
    }  # fmt: skip


def flux_model():
    model = FluxTransformer2DModel(pooled_projection_dim=6, guidance_embeds=True, **tiny_options())
    more = {"pooled_projections": torch.randn(BATCH, 6), "guidance": torch.tensor([3.5, 4.0])}
    return model, tiny_inputs() | more


BLOCKS = (flux_double, flux_kontext, flux_single, flux_kontext_single)
MODELS = (flux_model,)
