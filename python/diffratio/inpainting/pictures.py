"""Pictures and masks as people have them, to tensors and back without a changed bit."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

Pictures = PIL.Image.Image | Sequence[PIL.Image.Image] | np.ndarray | Tensor
"""PIL, one or a list; an array [H, W], [H, W, C] or [B, H, W, C]; a tensor [C, H, W] or [B, C, H, W]. In
[0, 1]; an array may hold bytes, a mask bools."""
OUTPUTS = ("pil", "np", "pt", "latent")


def picture_of(given: Pictures, channels: int) -> Tensor:
    """`tensor_of` pictures that are to come back as they were.

    Raises:
        ValueError: those of `tensor_of`, pictures that would lose something (transparency, 16 bits), and
            values that are none of [0, 1].
    """
    exact = ("L", "1") if channels == 1 else ("RGB", "L", "1", "P")
    for one in given if isinstance(given, (list, tuple)) else [given]:
        if isinstance(one, PIL.Image.Image) and (one.mode not in exact or "transparency" in one.info):
            mode = "L" if channels == 1 else "RGB"
            raise ValueError(f"image of mode {one.mode} is more than {mode} can hold; convert it before")
    picture = tensor_of(given, "image", channels)
    if not bool(((picture >= 0) & (picture <= 1)).all()):
        low, high = picture.aminmax()
        raise ValueError(f"image must be in [0, 1], got {low:g} to {high:g}")
    return picture


def tensor_of(given: Pictures, name: str, channels: int) -> Tensor:
    """[B, channels, H, W] in [0, 1].

    Raises:
        ValueError: pictures of different sizes, another number of channels, or no pictures; it begins with
            `name`.
    """
    if isinstance(given, PIL.Image.Image):
        given = [given]
    if isinstance(given, (list, tuple)) and given and all(isinstance(x, PIL.Image.Image) for x in given):
        if len({one.size for one in given}) > 1:
            raise ValueError(f"{name}: all pictures must have one size, got {[one.size for one in given]}")
        mode = "L" if channels == 1 else "RGB"
        given = np.stack([np.asarray(one.convert(mode)) for one in given])
        given = given[..., None] if channels == 1 else given
    if isinstance(given, np.ndarray):
        given = given[..., None] if given.ndim == 2 else given
        given = given[None] if given.ndim == 3 else given
        given = given.astype(np.float32) / 255 if given.dtype == np.uint8 else given
        given = torch.from_numpy(given).movedim(-1, 1) if given.ndim == 4 else given
    if not isinstance(given, Tensor) or given.dim() not in (3, 4) or not given.is_floating_point():
        raise ValueError(f"{name} must be pictures, arrays or tensors of floating point, got {_kind(given)}")
    given = given[None] if given.dim() == 3 else given
    if given.shape[1] != channels:
        raise ValueError(f"{name} has {given.shape[1]} channels, must have {channels}")
    return given


def mask_of(given: Pictures, like: Tensor) -> Tensor:
    """[B, 1, H, W] bool, on the CPU: what is white.

    Raises:
        ValueError: it is of another size than pictures like [B, C, H, W], transparent somewhere, or nothing
            of a mask is white.
    """
    for one in given if isinstance(given, (list, tuple)) else [given]:
        if isinstance(one, PIL.Image.Image) and is_transparent(one):
            raise ValueError("mask_image is transparent in places: paint it in white and black alone")
    if getattr(given, "dtype", None) in (torch.bool, np.dtype(bool)):
        given = 1.0 * given
    mask = tensor_of(given, "mask_image", 1).cpu() >= 0.5
    if mask.shape[-2:] != like.shape[-2:]:
        own, other = (f"{x.shape[-1]} x {x.shape[-2]}" for x in (mask, like))
        raise ValueError(f"mask_image is {own}, image is {other}: their sizes must be equal")
    if not mask.flatten(1).any(1).all():
        raise ValueError("mask_image is empty: nothing of it is white, so there is nothing to paint")
    return mask


def is_transparent(picture: PIL.Image.Image) -> bool:
    """Whether a pixel is."""
    return picture.has_transparency_data and picture.convert("RGBA").getchannel("A").getextrema()[0] < 255


def output_of(pictures: Tensor, kind: str):
    """[B, C, H, W] in [0, 1] as "pil", "np" or "pt"."""
    if kind == "pt":
        return pictures
    if kind == "np" and pictures.dtype == torch.float64:  # below all of its bits are not kept
        return pictures.cpu().movedim(1, -1).numpy()
    arrays = VaeImageProcessor.pt_to_numpy(pictures)
    return arrays if kind == "np" else VaeImageProcessor.numpy_to_pil(arrays)


def resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, C, H, W] in another size; itself in its own."""
    if pictures.shape[-2:] == size:
        return pictures
    return F.interpolate(pictures, size, mode="bilinear", antialias=True)


def resized_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask [B, 1, H, W] bool in another size: what it touches."""
    return mask if mask.shape[-2:] == size else resized(mask.float(), size) > 0


def _kind(given) -> str:
    return f"{given.dtype} of shape {tuple(given.shape)}" if hasattr(given, "shape") else type(given).__name__
