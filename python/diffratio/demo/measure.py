"""What a model costs: FLOPs, milliseconds and peak memory, dense and sparse side by side."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor

from .. import DiffRatioConfig, apply_diffratio
from ..data.digits import SIZE, TOKEN_CHANNELS, TOKENS_PER_CLASS
from ..evaluation.cost import compare
from ..flops import TransformerShape, block_flops, kept_tokens, transformer_flops

_TEXT_TOKENS = 120  # PixArt's caption length
_LATENT = 64  # a 512 x 512 image in PixArt's latent space: 32 x 32 tokens
_DIGIT_BATCH = 64
_DIGIT_REPEATS = 9
_FULL_SIZE_REPEATS = 5


def full_size_model(compression: float, device: torch.device) -> PixArtTransformer2DModel:
    """Return a PixArt-XL/2 with one block (width 1152, 16 heads, 1024 tokens), random weights, patched."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PixArtTransformer2DModel(num_layers=1, sample_size=_LATENT, caption_channels=TOKEN_CHANNELS)
        apply_diffratio(model.eval().to(device), DiffRatioConfig(compression=compression))
    return model


def random_inputs(model: PixArtTransformer2DModel, batch: int) -> dict[str, Tensor]:
    """Return the arguments of one forward: noise ``[B, C, h, w]``, text ``[B, M, 32]``, timesteps ``[B]``."""
    config = model.config
    text_tokens = TOKENS_PER_CLASS if config.sample_size == SIZE else _TEXT_TOKENS
    generator = torch.Generator().manual_seed(0)
    size = config.sample_size
    inputs = {
        "hidden_states": torch.randn(batch, config.in_channels, size, size, generator=generator),
        "encoder_hidden_states": torch.randn(batch, text_tokens, TOKEN_CHANNELS, generator=generator),
        "timestep": torch.full((batch,), 500),
    }
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}


@torch.inference_mode()
def block_call(model: PixArtTransformer2DModel, batch: int) -> Callable[[], Tensor]:
    """Return a function that runs the first block of ``model`` on the input of a real forward."""
    block = model.transformer_blocks[0]
    calls = []
    hook = block.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True, prepend=True
    )
    model(**random_inputs(model, batch))
    hook.remove()
    ((args, kwargs),) = calls
    return lambda: block(*args, **kwargs)


def costs(digit_model: PixArtTransformer2DModel, compression: float, progress: bool) -> list[dict[str, Any]]:
    """Return what dense and sparse cost: for the digit model, one block of it, and one full-size block.

    A digit has 64 tokens of width 96, so little that calling the operations costs as much as doing them; the
    full-size block (PixArt-XL/2 at 512 x 512 pixels, random weights) is what routing is made for. Each entry
    has ``what``, the results of ``compare``, and for ``dense`` and ``sparse`` also the GFLOP of one call.
    """
    kept_tenths = 10 - round(10 * compression)
    digit_inputs = random_inputs(digit_model, _DIGIT_BATCH)
    digit_shape = TransformerShape.from_model(digit_model, text_tokens=TOKENS_PER_CLASS)
    digit_kept = kept_tokens(kept_tenths, digit_shape.tokens)
    large_model = full_size_model(compression, digit_model.device)
    large_shape = TransformerShape.from_model(large_model, text_tokens=_TEXT_TOKENS)
    large_kept = kept_tokens(kept_tenths, large_shape.tokens)

    def block(shape: TransformerShape, kept: int | None, batch: int) -> float:
        flops = block_flops(shape.tokens, kept, shape.width, shape.text_tokens, cache_text_kv=False)
        return batch * flops / 1e9

    def model(kept: int | None) -> float:
        return transformer_flops(digit_shape, kept, batch=_DIGIT_BATCH).total / 1e9

    plan = [
        (
            f"digit model, {_DIGIT_BATCH} images",
            digit_model,
            lambda: digit_model(**digit_inputs),
            (model(None), model(digit_kept)),
            _DIGIT_REPEATS,
        ),
        (
            f"digit block, {_DIGIT_BATCH} images",
            digit_model,
            block_call(digit_model, _DIGIT_BATCH),
            (block(digit_shape, None, _DIGIT_BATCH), block(digit_shape, digit_kept, _DIGIT_BATCH)),
            _DIGIT_REPEATS,
        ),
        (
            "full-size block, 1 image",
            large_model,
            block_call(large_model, 1),
            (block(large_shape, None, 1), block(large_shape, large_kept, 1)),
            _FULL_SIZE_REPEATS,
        ),
    ]
    results = []
    for what, owner, call, (dense, sparse), repeats in plan:
        measured = compare(owner, call, repeats=repeats, description=f"measuring {what}", progress=progress)
        measured["dense"]["gflop"], measured["sparse"]["gflop"] = dense, sparse
        results.append({"what": what, **measured})
    return results
