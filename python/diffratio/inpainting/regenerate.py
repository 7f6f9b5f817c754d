"""The model of RegenerateImage and RegenerateCrop: PixArt with the masked picture in more input channels."""

import torch
from diffusers import PixArtTransformer2DModel

from .pixart import begun, check_pixart


def regenerate_from_pixart(model: PixArtTransformer2DModel) -> PixArtTransformer2DModel:
    """PixArt with 2C + 1 input channels: x_t [C], the masked picture [C], the mask [1].

    Weights of the new channels are zero, so that training begins with what `model` does.

    Args:
        model: a PixArt of C input channels.

    Returns:
        A new model, on the device of `model`, in its dtype.

    Raises:
        ValueError: `model` is no PixArt of diffusers, or is routed or has adapters.

    Example:
        >>> model = regenerate_from_pixart(PixArtTransformer2DModel.from_pretrained(folder))
    """
    check_pixart(model)
    channels = model.config.in_channels
    config = {**model.config, "in_channels": 2 * channels + 1, "out_channels": model.out_channels}
    config.pop("_use_default_values", None)  # of these names diffusers would not read ours
    state, name = model.state_dict(), "pos_embed.proj.weight"
    new = state[name].new_zeros(state[name].shape[0], channels + 1, *state[name].shape[2:])
    state[name] = torch.cat([state[name], new], dim=1)
    return begun(PixArtTransformer2DModel.from_config(config), model, state)
