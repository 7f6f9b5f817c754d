"""What a model of a family is called with, of any size, drawn on any device: on "meta" nothing is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """What one call of a model is given.

    Args:
        height, width: of the latent; pixels / 8 with most VAEs, / 32 with LTX's.
        text: tokens M of every text.
        frames: of the latent.
        batch: samples B; guidance doubles them.
    """

    height: int
    width: int
    text: int
    frames: int = 1
    batch: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: {value!r} must be a positive integer")


@dataclass(frozen=True)
class Draw:
    """Random tensors of one dtype on one device."""

    device: str | torch.device = "meta"
    dtype: torch.dtype = torch.bfloat16

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def full(self, value: float, *shape: int) -> Tensor:
        """One number everywhere, float32: timesteps."""
        return torch.full(shape, value, device=self.device, dtype=torch.float32)

    def ones(self, *shape: int) -> Tensor:
        """A mask that leaves nothing out."""
        return torch.ones(shape, device=self.device, dtype=torch.long)


def model_inputs(model: nn.Module, size: Size, draw: Draw) -> dict[str, Any]:
    """Arguments of one call of a diffusers transformer, by name.

    Raises:
        ValueError: a class that is not known here, or a size that does not fit; the message names it.
    """
    name = type(model).__name__
    if name not in INPUTS:
        raise ValueError(f"model: {name} is not one of {', '.join(sorted(INPUTS))}")
    return INPUTS[name](model.config, size, draw)


def _parts(size: Size, patch: int = 2) -> tuple[int, int]:
    """Rows and columns of patches."""
    for name in ("height", "width"):
        if getattr(size, name) % patch:
            raise ValueError(f"{name}: {getattr(size, name)} is not a multiple of the patch size {patch}")
    return size.height // patch, size.width // patch


def _grid(size: Size, patch: int = 2) -> int:
    """Patches of one image."""
    rows, columns = _parts(size, patch)
    return rows * columns


def _flux(config, size: Size, draw: Draw, axes: int = 3) -> dict[str, Any]:
    tokens = _grid(size)
    guided = {"guidance": draw.full(3.5, size.batch)} if config.guidance_embeds else {}
    return {
        "hidden_states": draw(size.batch, tokens, config.in_channels),
        "encoder_hidden_states": draw(size.batch, size.text, config.joint_attention_dim),
        "timestep": draw.full(0.5, size.batch).to(draw.dtype),
        "img_ids": draw.full(0.0, tokens, axes),
        "txt_ids": draw.full(0.0, size.text, axes),
    } | guided  # fmt: skip


def _flux1(config, size: Size, draw: Draw) -> dict[str, Any]:
    return _flux(config, size, draw) | {"pooled_projections": draw(size.batch, config.pooled_projection_dim)}


def _flux2(config, size: Size, draw: Draw) -> dict[str, Any]:
    return _flux(config, size, draw, axes=4)


def _z_image(config, size: Size, draw: Draw) -> dict[str, Any]:
    _grid(size, config.all_patch_size[0])
    image = config.in_channels, size.frames, size.height, size.width
    return {
        "x": [draw(*image) for _ in range(size.batch)],
        "cap_feats": [draw(size.text, config.cap_feat_dim) for _ in range(size.batch)],
        "t": draw.full(0.5, size.batch),
    }


def _qwen_image(config, size: Size, draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw(size.batch, _grid(size), config.in_channels),
        "encoder_hidden_states": draw(size.batch, size.text, config.joint_attention_dim),
        "timestep": draw.full(0.5, size.batch).to(draw.dtype),
        "img_shapes": [[(1, *_parts(size))]] * size.batch,
    }


def _wan(config, size: Size, draw: Draw) -> dict[str, Any]:
    _grid(size, config.patch_size[1])
    image = {} if config.image_dim is None else {
        "encoder_hidden_states_image": draw(size.batch, CLIP_TOKENS, config.image_dim)
    }  # fmt: skip
    return {
        "hidden_states": draw(size.batch, config.in_channels, size.frames, size.height, size.width),
        "encoder_hidden_states": draw(size.batch, size.text, config.text_dim),
        "timestep": draw.full(500.0, size.batch),
    } | image


CLIP_TOKENS = 257
"""Of the image that Wan 2.1's image-to-video model is given."""


def _sd3(config, size: Size, draw: Draw) -> dict[str, Any]:
    _grid(size, config.patch_size)
    return {
        "hidden_states": draw(size.batch, config.in_channels, size.height, size.width),
        "encoder_hidden_states": draw(size.batch, size.text, config.joint_attention_dim),
        "pooled_projections": draw(size.batch, config.pooled_projection_dim),
        "timestep": draw.full(500.0, size.batch),
    }


def _ltx(config, size: Size, draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw(size.batch, size.frames * _grid(size, 1), config.in_channels),
        "encoder_hidden_states": draw(size.batch, size.text, config.caption_channels),
        "encoder_attention_mask": draw.ones(size.batch, size.text),
        "timestep": draw.full(500.0, size.batch),
        "num_frames": size.frames, "height": size.height, "width": size.width,
        "rope_interpolation_scale": (0.32, 32, 32),
    }  # fmt: skip


def _hunyuan_video(config, size: Size, draw: Draw) -> dict[str, Any]:
    _grid(size, config.patch_size)
    guided = {"guidance": draw.full(6000.0, size.batch)} if config.guidance_embeds else {}
    return {
        "hidden_states": draw(size.batch, config.in_channels, size.frames, size.height, size.width),
        "encoder_hidden_states": draw(size.batch, size.text, config.text_embed_dim),
        "encoder_attention_mask": draw.ones(size.batch, size.text),
        "pooled_projections": draw(size.batch, config.pooled_projection_dim),
        "timestep": draw.full(500.0, size.batch),
    } | guided


def _krea2(config, size: Size, draw: Draw) -> dict[str, Any]:
    tokens, layers = _grid(size), config.num_text_layers
    return {
        "hidden_states": draw(size.batch, tokens, config.in_channels),
        "encoder_hidden_states": draw(size.batch, size.text, layers, config.text_hidden_dim),
        "timestep": draw.full(0.5, size.batch),
        "position_ids": draw.full(0.0, size.text + tokens, 3),
    }


def _lumina2(config, size: Size, draw: Draw) -> dict[str, Any]:
    _grid(size, config.patch_size)
    host = "cpu" if draw.device == "meta" else draw.device  # the model reads how long the texts are
    return {
        "hidden_states": draw(size.batch, config.in_channels, size.height, size.width),
        "encoder_hidden_states": draw(size.batch, size.text, config.cap_feat_dim),
        "encoder_attention_mask": torch.ones(size.batch, size.text, device=host, dtype=torch.long),
        "timestep": draw.full(0.5, size.batch),
    }


def _minimax_h3(config, size: Size, draw: Draw) -> dict[str, Any]:
    """One sequence [text, audio, video]; one audio token for each frame."""
    audio, video = size.frames, size.frames * _grid(size, config.patch_size[1])
    rows = size.text + audio + video
    places = torch.arange(rows, device=draw.device)
    tags = torch.cat([torch.full((n,), tag) for tag, n in ((1, size.text), (2, audio), (0, video))])
    patch = config.in_channels * config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
    return {
        "hidden_states": draw(size.batch, video, patch),
        "audio_hidden_states": draw(size.batch, audio, config.audio_in_channels),
        "encoder_hidden_states": draw(size.batch, size.text, config.text_dim),
        "timestep": draw.full(0.5, 1),
        "timestep_indices": torch.zeros_like(places),
        "token_tags": tags.to(draw.device),
        "position_ids": draw.full(0.0, rows, 3),
        "text_indices": places[: size.text],
        "audio_indices": places[size.text : size.text + audio],
        "video_indices": places[size.text + audio :],
    }


INPUTS: dict[str, Callable[[Any, Size, Draw], dict[str, Any]]] = {
    "FluxTransformer2DModel": _flux1,
    "Flux2Transformer2DModel": _flux2,
    "HunyuanVideoTransformer3DModel": _hunyuan_video,
    "Krea2Transformer2DModel": _krea2,
    "LTXVideoTransformer3DModel": _ltx,
    "Lumina2Transformer2DModel": _lumina2,
    "MiniMaxH3Transformer3DModel": _minimax_h3,
    "QwenImageTransformer2DModel": _qwen_image,
    "SD3Transformer2DModel": _sd3,
    "WanTransformer3DModel": _wan,
    "ZImageTransformer2DModel": _z_image,
}
"""Class of a model in diffusers -> (its config, size, draw) -> the arguments of a call, by name."""
