"""What a model costs: FLOPs, milliseconds and peak memory, dense and sparse side by side."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor

from .. import DiffRatioConfig
from ..data.digits import TOKEN_CHANNELS, TOKENS_PER_CLASS
from ..evaluation.cost import compare, model_cost
from ..flops import TransformerShape, block_flops, kept_tokens
from ..patch import route_blocks

_TEXT_TOKENS = 120  # PixArt's caption length
_LATENT = 64  # a 512 x 512 image in PixArt's latent space: 32 x 32 tokens
_DIGIT_BATCH = 64
_REPEATS = 5


def full_size_model(compression: float, device: torch.device) -> PixArtTransformer2DModel:
    """Return a PixArt-XL/2 with one block (width 1152, 16 heads, 1024 tokens), random weights, patched."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PixArtTransformer2DModel(num_layers=1, sample_size=_LATENT, caption_channels=TOKEN_CHANNELS)
        route_blocks(model.eval().to(device), DiffRatioConfig(compression=compression))
    return model


@torch.inference_mode()
def block_call(model: PixArtTransformer2DModel) -> Callable[[], Tensor]:
    """Return a function that runs the only block of ``model`` on the input of a real forward of one image."""
    calls = []
    (block,) = model.transformer_blocks
    hook = block.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True, prepend=True
    )
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, model.config.in_channels, _LATENT, _LATENT, generator=generator)
    text = torch.randn(1, _TEXT_TOKENS, TOKEN_CHANNELS, generator=generator)
    device = model.device
    model(noise.to(device), text.to(device), timestep=torch.tensor([500], device=device))
    hook.remove()
    ((args, kwargs),) = calls
    return lambda: block(*args, **kwargs)


def costs(digit_model: PixArtTransformer2DModel, compression: float, progress: bool) -> list[dict[str, Any]]:
    """Return what dense and sparse cost: for the digit model and for one full-size block.

    The digit model keeps what it has learned. A digit has 64 tokens of width 96, so little that calling the
    operations costs as much as doing them; the full-size block (PixArt-XL/2 at 512 x 512 pixels, random
    weights, the same ``compression`` at every timestep) is what routing is made for. Each entry has ``what``
    and, for ``dense``, ``all_tokens`` and ``sparse``, the results of ``compare`` and the GFLOP of one call.
    """
    digits = model_cost(
        digit_model,
        batch=_DIGIT_BATCH,
        text_tokens=TOKENS_PER_CLASS,
        repeats=_REPEATS,
        progress=progress,
    )
    what = "full-size block, 1 image"
    model = full_size_model(compression, digit_model.device)
    block = compare(
        model,
        block_call(model),
        repeats=_REPEATS,
        description=f"measuring {what}",
        progress=progress,
    )
    shape = TransformerShape.from_model(model, text_tokens=_TEXT_TOKENS)
    kept = kept_tokens(10 - round(10 * compression), shape.tokens)
    for name, count in (("dense", None), ("all_tokens", shape.tokens), ("sparse", kept)):
        flops = block_flops(shape.tokens, count, shape.width, shape.text_tokens, cache_text_kv=False)
        block[name]["gflop"] = flops / 1e9
    return [{"what": f"digit model, {_DIGIT_BATCH} images", **digits}, {"what": what, **block}]
