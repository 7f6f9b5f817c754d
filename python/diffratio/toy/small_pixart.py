"""A PixArt transformer of about a million parameters for any of the data sets."""

from pathlib import Path

import torch
from diffusers import PixArtTransformer2DModel
from torch import nn

from ..data.captioned import CaptionedDataset

HEADS = 4
HEAD_DIM = 24

ASSETS = Path(__file__).parent / "assets"
PRETRAINED = {name: ASSETS / name for name in ("digits", "shapes")}
"""Folders of the dense models that ship with the package, by data set."""
DIGITS_LT30 = ASSETS / "digits-lt30"
"""The model of the digits, fine-tuned until it had learned how much each block keeps at which timesteps
(DiffRatio-LT, 30 % compression on average): weights, and the adapter beside them."""


def small_pixart(
    dataset: CaptionedDataset, seed: int, *, layers: int = 6, heads: int = HEADS, head_dim: int = HEAD_DIM
) -> PixArtTransformer2DModel:
    """Return a fresh model for images and captions of ``dataset``, initialised from ``seed`` as PixArt does.

    diffusers' default initialisation learns little in a short training; PixArt's own is Xavier for linear
    layers, small normal embeddings, and zeros where the text and the prediction leave the network.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = PixArtTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            in_channels=dataset.channels,
            out_channels=dataset.channels,
            num_layers=layers,
            cross_attention_dim=heads * head_dim,
            sample_size=dataset.size,
            patch_size=dataset.patch_size,
            use_additional_conditions=False,
            caption_channels=dataset.text_width,
        )
        _pixart_init(model)
    return model


def load_pixart(folder: Path | str, device: torch.device | str = "cpu") -> PixArtTransformer2DModel:
    """Return the model that diffusers' ``save_pretrained`` wrote to ``folder``, for inference."""
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"folder {str(folder)!r} holds no model (config.json is missing)")
    model = PixArtTransformer2DModel.from_pretrained(
        folder, local_files_only=True, low_cpu_mem_usage=False, use_safetensors=True
    )
    return model.eval().to(device)


def _pixart_init(model: PixArtTransformer2DModel) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    patch = model.pos_embed.proj
    nn.init.xavier_uniform_(patch.weight.view(patch.out_channels, -1))
    nn.init.zeros_(patch.bias)
    for embedding in (model.adaln_single, model.caption_projection):
        for module in embedding.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
    for block in model.transformer_blocks:
        nn.init.zeros_(block.attn2.to_out[0].weight)
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
