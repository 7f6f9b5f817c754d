"""Models that begin as a PixArt does."""

from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn


def check_pixart(model: nn.Module) -> None:
    """A ValueError where a model is no plain PixArt of diffusers."""
    if type(model) is not PixArtTransformer2DModel:
        raise ValueError(f"model must be a PixArtTransformer2DModel, got {type(model).__name__}")


def begun(made: nn.Module, model: PixArtTransformer2DModel, state: dict[str, Tensor]) -> nn.Module:
    """`made` with the weights of `state`, on the device, in the dtype and in the mode of `model`.

    Raises:
        ValueError: there are weights that `made` has no place for: of routers, or of adapters.
    """
    more = made.load_state_dict(state, strict=False).unexpected_keys
    if more:
        raise ValueError(f"model has {more[0]}, which PixArt has not; route it, or add adapters, after this")
    made = made.to(model.device).train(model.training)
    return made if made.dtype == model.dtype else made.to(model.dtype)  # diffusers warns of every cast
