"""FLUX.1's blocks in other files of diffusers: Bria, Bria FIBO, LongCat-Image, Ovis-Image."""

import torch
from diffusers import (
    BriaFiboTransformer2DModel,
    BriaTransformer2DModel,
    LongCatImageTransformer2DModel,
    OvisImageTransformer2DModel,
)
from diffusers.models.transformers import transformer_bria as bria
from diffusers.models.transformers import transformer_bria_fibo as fibo
from diffusers.models.transformers import transformer_longcat_image as longcat
from diffusers.models.transformers import transformer_ovis_image as ovis

from .case import BATCH, HEADS, TEXT, WIDTH, D
from .flux import joint_case, sequence_case, some_text, tiny_inputs, tiny_options


def _masked(mask):
    return {"joint_attention_kwargs": {"attention_mask": mask[:, None, None]}}


def _double(cls, **options):
    block = cls(D, HEADS, WIDTH)
    return joint_case(block, {"temb": torch.randn(BATCH, D)}, block.ff, **options)


def _single(cls, mlp, **options):
    block = cls(D, HEADS, WIDTH)
    case = joint_case(block, {"temb": torch.randn(BATCH, D)}, getattr(block, mlp), **options)
    case.mlp_start = lambda b: TEXT
    return case


def bria_double():
    return _double(bria.BriaTransformerBlock)


def bria_single():
    return _single(bria.BriaSingleTransformerBlock, "act_mlp")


def bria_fibo_double():
    return _double(fibo.BriaFiboTransformerBlock, masked=_masked)


def bria_fibo_edit():
    return _double(fibo.BriaFiboTransformerBlock, references=4)


def bria_fibo_single():
    block = fibo.BriaFiboSingleTransformerBlock(D, HEADS, WIDTH)
    return sequence_case(block, {"temb": torch.randn(BATCH, D)}, block.act_mlp, masked=_masked)


def bria_fibo_edit_single():
    block = fibo.BriaFiboSingleTransformerBlock(D, HEADS, WIDTH)
    return sequence_case(block, {"temb": torch.randn(BATCH, D)}, block.act_mlp, references=4)


def longcat_double():
    return _double(longcat.LongCatImageTransformerBlock)


def longcat_edit():
    """Its numbers are 1 for the image and 2 for the reference."""
    case = _double(longcat.LongCatImageTransformerBlock, references=4)
    case.told["img_ids"][:, 0] += 1
    return case


def longcat_single():
    return _single(longcat.LongCatImageSingleTransformerBlock, "act_mlp")


def ovis_double():
    return _double(ovis.OvisImageTransformerBlock)


def ovis_single():
    """The score before the gate is the score behind it."""
    return _single(ovis.OvisImageSingleTransformerBlock, "act_mlp")


def bria_model():
    model = BriaTransformer2DModel(**tiny_options())
    return model, tiny_inputs() | {"timestep": torch.tensor([300.0, 700.0])}


def bria_fibo_model():
    model = BriaFiboTransformer2DModel(text_encoder_dim=8, **tiny_options())
    mask = torch.cat([some_text()[:, :TEXT], torch.ones(BATCH, 36, dtype=torch.bool)], dim=1)
    return model, tiny_inputs() | {
        "timestep": torch.tensor([300.0, 700.0]), "text_encoder_layers": list(torch.randn(4, BATCH, TEXT, 8)),
        "joint_attention_kwargs": {"attention_mask": mask[:, None, None]},
    }  # fmt: skip


def longcat_model():
    options = tiny_options()
    return LongCatImageTransformer2DModel(pooled_projection_dim=6, **options), tiny_inputs()


def ovis_model():
    return OvisImageTransformer2DModel(**tiny_options()), tiny_inputs()


BLOCKS = (
    bria_double, bria_single, bria_fibo_double, bria_fibo_edit, bria_fibo_single, bria_fibo_edit_single,
    longcat_double, longcat_edit, longcat_single, ovis_double, ovis_single,
)  # fmt: skip
MODELS = (bria_model, bria_fibo_model, longcat_model, ovis_model)
