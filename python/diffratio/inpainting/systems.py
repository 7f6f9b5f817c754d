"""The three systems that repaint a hole, for training and for sampling: what they are shown of a picture, how
their model is called, and what of its output is kept."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn

from ..routing.find import transformer_of
from .hole import Hole
from .lazy import LazyPixArt
from .masks import grown, token_mask
from .pictures import resized, resized_mask
from .regenerate import regenerate_from_pixart

MARGIN = 1 / 16
"""Around the mask in a crop, in sides of the picture; at least one pixel."""


@dataclass(frozen=True)
class Edit:
    """A batch of pictures, pixels or latents, as a system sees them."""

    clean: Tensor
    """[B, C, H, W]: what noise is added to."""
    mask: Tensor
    """[B, 1, H, W] bool: what is to be repainted."""
    where: Tensor
    """[B, 1, H, W] bool: the patches that the mask touches, in which predictions count."""
    hole: Hole | None = None
    context: Tensor | None = None
    """Of the lazy system: its tokens, and what their encoder said [B, n, D]."""

    @property
    def masked(self) -> Tensor:
        """What is known, zero where it is not, and the mask: [B, C + 1, H, W]."""
        known = self.clean.masked_fill(self.mask, 0)
        return torch.cat([known, self.mask.to(known)], dim=1)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over each sample's hole, its whole patches, of values [B, K, H, W]: [B]."""
        total = values.masked_fill(~self.where, 0).flatten(1).sum(1)
        return total / (self.where.flatten(1).sum(1) * values.shape[1])

    def twice(self) -> "Edit":
        """The samples and again the samples, for guidance; of the context what was computed."""
        hole = None if self.hole is None else self.hole.twice()
        twice = {name: torch.cat([getattr(self, name)] * 2) for name in ("clean", "mask", "where")}
        context = None if self.context is None else torch.cat([self.context] * 2)
        return Edit(**twice, hole=hole, context=context)


@dataclass(frozen=True)
class Frame:
    """The part of each picture that a system looks at."""

    pictures: Tensor
    """[B, C, h, w]."""
    mask: Tensor
    """[B, 1, h, w] bool."""
    boxes: list[tuple[int, int, int, int]] | None = None
    """Of each picture top, left, bottom, right, which `pictures` shows resized; None: all of it."""

    def restore(self, made: Tensor, pictures: Tensor) -> Tensor:
        """`pictures` [B, C, H, W] with what was made [B, C, h, w] in its place."""
        if self.boxes is None:
            return made
        whole = pictures.clone()
        for row, (top, left, bottom, right) in enumerate(self.boxes):
            part = resized(made[row : row + 1], (bottom - top, right - left))
            whole[row, :, top:bottom, left:right] = part[0].to(whole)
        return whole


class System:
    """What the three have in common; `model` may be wrapped by DDP, PEFT or torch.compile."""

    name: str

    def from_pixart(self, model: PixArtTransformer2DModel, **options: Any) -> nn.Module:
        """The system's model with the weights of a PixArt."""
        raise NotImplementedError

    def why_not(self, model: nn.Module) -> str | None:
        """Why a model is not one of this system; None where it is."""
        raise NotImplementedError

    def channels(self, model: nn.Module) -> int:
        """C, of the picture."""
        raise NotImplementedError

    def frame(self, pictures: Tensor, mask: Tensor, unit: int) -> Frame:
        """What the system looks at.

        Args:
            pictures: [B, C, H, W], sides multiples of `unit`.
            mask: [B, 1, H, W] bool.
            unit: the side of a token.
        """
        return Frame(pictures, mask)

    def edit(self, frame: Frame, patch: int) -> Edit:
        """A batch for the model, of pictures as it sees them: pixels or latents.

        Raises:
            ValueError: a mask that is empty, or sides that a patch does not divide.
        """
        empty = (~frame.mask.flatten(1).any(1)).tolist()
        if True in empty:
            raise ValueError(f"mask of sample {empty.index(True)} is empty: there is nothing to paint")
        mask = frame.mask.to(frame.pictures.device)
        return Edit(frame.pictures, mask, grown(mask, patch))

    def encoded(self, model: nn.Module, edit: Edit) -> Edit:
        """The edit with what is computed once for all steps; in training nothing is."""
        return edit

    def predict(self, model: nn.Module, edit: Edit, noisy: Tensor, **condition: Any) -> Tensor:
        """What the model predicts of `noisy` [B, C, H, W]: [B, out_channels, H, W], which counts in
        `edit.where`. `condition` is PixArt's: timestep, encoder_hidden_states ..."""
        raise NotImplementedError


class RegenerateImage(System):
    """All tokens of the picture; of what is made the mask is kept."""

    name = "image"

    def from_pixart(self, model, **options):
        return regenerate_from_pixart(model, **options)

    def why_not(self, model):
        model = transformer_of(model)
        if type(model) is PixArtTransformer2DModel:
            channels = self.channels(model)
            if model.config.in_channels == 2 * channels + 1 and model.out_channels in (
                channels,
                2 * channels,
            ):
                return None
        return (
            f"system={self.name!r} wants a PixArtTransformer2DModel of 2 C + 1 input channels "
            f"(regenerate_from_pixart), got {_described(model)}"
        )

    def channels(self, model):
        return (transformer_of(model).config.in_channels - 1) // 2

    def predict(self, model, edit, noisy, **condition):
        given = torch.cat([noisy, edit.masked.to(noisy)], dim=1)
        return model(given, **condition, return_dict=False)[0]


class RegenerateCrop(RegenerateImage):
    """All tokens of a square around the mask, which is resized to half the side of the picture."""

    name = "crop"

    def frame(self, pictures, mask, unit):
        height, width = pictures.shape[-2:]
        side = max(unit, round(min(height, width) / 2 / unit) * unit)
        boxes = [_square_around(one[0]) for one in mask]
        parts, masks = [], []
        for row, (top, left, bottom, right) in enumerate(boxes):
            part = (slice(row, row + 1), slice(None), slice(top, bottom), slice(left, right))
            parts.append(resized(pictures[part], (side, side)))
            masks.append(resized_mask(mask[part], (side, side)))
        return Frame(torch.cat(parts), torch.cat(masks), boxes)


class Lazy(System):
    """The hole's tokens alone, in the context of all: `LazyPixArt`."""

    name = "lazy"

    def from_pixart(self, model, **options):
        return LazyPixArt.from_pixart(model, **options)

    def why_not(self, model):
        model = transformer_of(model)
        if isinstance(model, LazyPixArt):
            return None
        return f"system='lazy' wants a LazyPixArt (LazyPixArt.from_pixart), got {_described(model)}"

    def channels(self, model):
        return transformer_of(model).config.in_channels

    def edit(self, frame, patch):
        edit = super().edit(frame, patch)
        return replace(edit, hole=Hole.of(token_mask(frame.mask, patch)).to(edit.clean.device))

    def encoded(self, model, edit):
        model = transformer_of(model)
        return replace(edit, context=model.encode(edit.masked.to(model.dtype), edit.hole))

    def predict(self, model, edit, noisy, **condition):
        given = {"masked": edit.masked.to(noisy)} if edit.context is None else {"context": edit.context}
        return model(noisy, hole=edit.hole, **given, **condition, return_dict=False)[0]


SYSTEMS = {system.name: system for system in (Lazy(), RegenerateImage(), RegenerateCrop())}
"""By name."""


def system_of(name: str) -> System:
    """The system of a name.

    Raises:
        ValueError: there is none; the text has those that there are.
    """
    if name not in SYSTEMS:
        raise ValueError(f"system={name!r} must be one of {', '.join(SYSTEMS)}")
    return SYSTEMS[name]


def _described(model: nn.Module) -> str:
    channels = getattr(getattr(model, "config", None), "in_channels", None)
    return f"a {type(model).__name__}" + ("" if channels is None else f" of {channels} input channels")


def _square_around(mask: Tensor) -> tuple[int, int, int, int]:
    """top, left, bottom, right of the smallest square around a mask [H, W] and its margin, moved into the
    picture; as long as the picture's shorter side allows."""
    ends = []
    for axis in (0, 1):
        marked = mask.any(1 - axis).nonzero()
        ends.append((marked.min().item(), marked.max().item() + 1))
    margin = max(1, round(MARGIN * min(mask.shape)))
    side = max(stop - start for start, stop in ends) + 2 * margin
    spans = []
    for (start, stop), length in zip(ends, mask.shape, strict=True):
        size = min(side, length)
        first = min(max((start + stop - size) // 2, 0), length - size)
        spans.append((first, first + size))
    (top, bottom), (left, right) = spans
    return top, left, bottom, right
