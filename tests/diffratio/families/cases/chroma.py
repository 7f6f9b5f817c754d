"""Chroma: double and single blocks with and without a mask of text."""

import torch
from diffusers import ChromaTransformer2DModel
from diffusers.models.transformers.transformer_chroma import (
    ChromaSingleTransformerBlock,
    ChromaTransformerBlock,
)

from .case import BATCH, HEADS, WIDTH, D
from .flux import joint_case, sequence_case, some_text, tiny_inputs, tiny_options


def _masked(mask):
    return {"attention_mask": mask}


def chroma_double():
    block = ChromaTransformerBlock(D, HEADS, WIDTH)
    return joint_case(block, {"temb": torch.randn(BATCH, 12, D)}, block.ff, masked=_masked)


def chroma_single():
    block = ChromaSingleTransformerBlock(D, HEADS, WIDTH)
    return sequence_case(block, {"temb": torch.randn(BATCH, 3, D)}, block.act_mlp)


def chroma_single_masked():
    block = ChromaSingleTransformerBlock(D, HEADS, WIDTH)
    return sequence_case(block, {"temb": torch.randn(BATCH, 3, D)}, block.act_mlp, masked=_masked)


def chroma_model():
    options = tiny_options() | {"approximator_num_channels": 8, "approximator_hidden_dim": 16}
    return ChromaTransformer2DModel(approximator_layers=1, **options), tiny_inputs()


def chroma_masked_model():
    model, inputs = chroma_model()
    text = some_text()[:, : inputs["encoder_hidden_states"].shape[1]]
    mask = torch.cat([text, text.new_ones(BATCH, inputs["hidden_states"].shape[1])], dim=1)
    return model, inputs | {"attention_mask": mask}


chroma_masked_model.checkpointing = "diffusers' model does not give its single blocks the mask then"

BLOCKS = (chroma_double, chroma_single, chroma_single_masked)
MODELS = (chroma_model, chroma_masked_model)
