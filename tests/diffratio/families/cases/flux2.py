"""FLUX.2: double and single blocks, modulation of the batch or of one sample, references."""

import torch
from diffusers import Flux2Transformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2SingleTransformerBlock, Flux2TransformerBlock

from .case import BATCH, HEADS, TEXT, WIDTH, D
from .flux import joint_case, sequence_case, text_image, tiny_inputs, tiny_options


def flux2_double():
    block = Flux2TransformerBlock(D, HEADS, WIDTH)
    modulation = {name: torch.randn(BATCH, 6 * D) for name in ("temb_mod_img", "temb_mod_txt")}
    return joint_case(block, modulation, block.ff)


def flux2_references():
    block = Flux2TransformerBlock(D, HEADS, WIDTH)
    modulation = {name: torch.randn(BATCH, 6 * D) for name in ("temb_mod_img", "temb_mod_txt")}
    return joint_case(block, modulation, block.ff, references=4)


def _single(references: int = 0):
    block = Flux2SingleTransformerBlock(D, HEADS, WIDTH)
    case = sequence_case(block, {"temb_mod": torch.randn(BATCH, 3 * D)}, block.attn.mlp_act_fn, references)
    case.inputs["encoder_hidden_states"] = None
    gathered = case.alone
    case.alone = lambda b, kept: gathered(b, kept) | {"encoder_hidden_states": None}
    return case


def flux2_single():
    return _single()


def flux2_single_references():
    return _single(references=4)


def flux2_single_split():
    """Text and image given apart, and given back so."""
    block = Flux2SingleTransformerBlock(D, HEADS, WIDTH)
    case = joint_case(block, {"temb_mod": torch.randn(BATCH, 3 * D)}, block.attn.mlp_act_fn)
    case.inputs["split_hidden_states"] = True
    gathered = case.alone
    case.alone = lambda b, kept: gathered(b, kept) | {"split_hidden_states": True}
    case.parts, case.mlp_start = text_image, lambda b: TEXT
    return case


def flux2_model():
    options = tiny_options() | {"axes_dims_rope": (4, 4, 4, 4), "timestep_guidance_channels": 16}
    inputs = tiny_inputs()
    ids = torch.zeros(BATCH, 36, 4)
    ids[..., 1:3] = inputs["img_ids"][:, 1:]
    ids[:, 27:, 0] = 10  # the last quarter is a reference
    text = torch.zeros(BATCH, TEXT, 4)
    text[..., 3] = torch.arange(TEXT)
    more = {"img_ids": ids, "txt_ids": text, "guidance": torch.tensor([3.5, 4.0])}
    return Flux2Transformer2DModel(**options), inputs | more


BLOCKS = (flux2_double, flux2_references, flux2_single, flux2_single_references, flux2_single_split)
MODELS = (flux2_model,)
