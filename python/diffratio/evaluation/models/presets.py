"""Transformers at the sizes at which people run them: their public configurations, and one call of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from .inputs import INPUTS, Size


@dataclass(frozen=True)
class Preset:
    """A model and the size of its inputs.

    Args:
        model: its class in diffusers.
        size: of one call.
        config: where it differs from the defaults of the class.
    """

    model: str
    size: Size
    config: Mapping[str, Any] = field(default_factory=dict)

    def make(self, device: str | torch.device = "meta", dtype: torch.dtype = torch.bfloat16) -> nn.Module:
        """The model without its weights: on "meta" nothing is allocated.

        Raises:
            ValueError: its class is not one whose inputs are known.
        """
        import diffusers

        if self.model not in INPUTS:
            raise ValueError(f"model: {self.model!r} is not one of {', '.join(sorted(INPUTS))}")
        with torch.device(device):
            made = getattr(diffusers, self.model).from_config(dict(self.config))
        return nn.Module.to(made, dtype).eval()  # diffusers' own keeps modules in fp32, and says so

    def resized(self, **sizes: int | None) -> Preset:
        """The same with other sizes, where they are not None."""
        given = {name: value for name, value in sizes.items() if value is not None}
        return replace(self, size=replace(self.size, **given))


_FLUX = {"guidance_embeds": True}
_WAN_SMALL = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
_SD35 = {"qk_norm": "rms_norm", "pos_embed_max_size": 192}
_LARGE = _SD35 | {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432}
_MEDIUM = _SD35 | {
    "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
}  # fmt: skip
_480P = Size(60, 104, 512, frames=21)
_720P = Size(90, 160, 512, frames=21)

PRESETS = {
    "flux.1-dev-1024": Preset("FluxTransformer2DModel", Size(128, 128, 512), _FLUX),
    "flux.2-dev-1024": Preset("Flux2Transformer2DModel", Size(128, 128, 512)),
    "z-image-1024": Preset("ZImageTransformer2DModel", Size(128, 128, 128)),
    "qwen-image-1024": Preset("QwenImageTransformer2DModel", Size(128, 128, 128)),
    "qwen-image-1328": Preset("QwenImageTransformer2DModel", Size(166, 166, 128)),
    "wan-14b-480p": Preset("WanTransformer3DModel", _480P),
    "wan-14b-720p": Preset("WanTransformer3DModel", _720P),
    "wan-1.3b-480p": Preset("WanTransformer3DModel", _480P, _WAN_SMALL),
    "wan-1.3b-720p": Preset("WanTransformer3DModel", _720P, _WAN_SMALL),
    "sd3.5-large-1024": Preset("SD3Transformer2DModel", Size(128, 128, 333), _LARGE),
    "sd3.5-medium-1024": Preset("SD3Transformer2DModel", Size(128, 128, 333), _MEDIUM),
    "krea-2-1024": Preset("Krea2Transformer2DModel", Size(128, 128, 128)),
    "ltx-video-480p": Preset("LTXVideoTransformer3DModel", Size(15, 22, 128, frames=21)),
    "hunyuan-video-720p": Preset("HunyuanVideoTransformer3DModel", Size(90, 160, 256, frames=33)),
    "lumina-2-1024": Preset("Lumina2Transformer2DModel", Size(128, 128, 256)),
    "minimax-h3-480p": Preset("MiniMaxH3Transformer3DModel", Size(60, 104, 256, frames=21)),
}
"""By model and picture. Images of 1024 pixels a side and videos of 81 frames (5 s of Wan; HunyuanVideo's 129,
LTX's 161) are latents of 1/8 of the side and 1/4 of the frames (LTX: 1/32 and 1/8). Where a pipeline does not
pad its text, 128 tokens are a prompt of some 90 words."""
