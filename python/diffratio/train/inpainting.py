"""Training to repaint holes: the loss in a hole, and which hole a sample has."""

from collections.abc import Callable

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from ..data import CaptionedDataset
from ..inpainting.masks import draw_masks, pooled
from ..inpainting.systems import Frame, System, system_of
from ..routing.find import transformer_of
from .arguments import ArgumentError, TrainArguments
from .objective import Objective, clean_image


class InpaintObjective(Objective):
    """`Objective` of a system of `diffratio.inpainting`: means are over the patches of each sample's hole."""

    def __init__(self, model: nn.Module, scheduler: DDPMScheduler, *, system: System, **options):
        super().__init__(model, scheduler, **options)
        self.system, self.channels = system, system.channels(model)
        self._patch = transformer_of(model).config.patch_size

    def _predict(self, model, noisy, batch):
        edit = self.system.edit(Frame(clean_image(batch), batch["hole"]), self._patch)
        times = {"timestep": batch["timestep"]}
        return self.system.predict(model, edit, noisy, **times, **self.condition(batch)), edit.mean


def begin_system(model: nn.Module, arguments: TrainArguments) -> nn.Module:
    """A model of `arguments.system` with the weights of a PixArt; itself where it is one.

    Raises:
        ArgumentError: it is neither.
    """
    system = system_of(arguments.system)
    if system.why_not(model) is None:
        return model
    try:
        return system.from_pixart(model)
    except ValueError as error:
        name = arguments.pretrained_model_name_or_path
        raise ArgumentError(f"pretrained_model_name_or_path={name!r}: {error}") from None


class Holes:
    """The hole of each sample, a function of the seed and the sample's number (and, for objects, its image).

    Args:
        arguments: the system, and which masks.
        source: the images, which may know the masks of their objects.
        patch: the side of a model's token.
        factor: pixels of a side for each of a latent's; 1 for a model on pixels.
        seed: of the masks.
        images: pixels [n, 3, H, W] -> what `Encoders` makes of them; of crops in latents, whose own pixels
            are encoded: no part of a picture's latents is those of a crop, resized less so.

    Raises:
        ArgumentError: masks that the data cannot have, or a crop that other processes would have to encode.
    """

    def __init__(
        self,
        arguments: TrainArguments,
        source: CaptionedDataset,
        patch: int,
        factor: int,
        seed: int,
        images: Callable[[Tensor], dict[str, Tensor]] | None = None,
    ):
        self.system, self.kind = system_of(arguments.system), arguments.masks
        self._source, self._patch, self._factor, self._seed = source, patch, factor, seed
        self._images = images
        if images is not None and arguments.dataloader_num_workers:
            raise ArgumentError(
                f"dataloader_num_workers={arguments.dataloader_num_workers} must be 0 for system='crop' in "
                "latents: its VAE is where the model is"
            )
        try:
            draw_masks(self.kind, torch.zeros(1, dtype=torch.int64), 8, objects=source.masks([0]))
        except ValueError as error:
            raise ArgumentError(f"masks={self.kind!r}: {error}") from None

    @torch.no_grad()
    def __call__(self, item: dict[str, Tensor], row: int, number: int) -> dict[str, Tensor]:
        """Return an item with `hole` [1, h, w] bool; its picture is what the system sees of it.

        Args:
            item: of the data set.
            row: its place there.
            number: of the sample.
        """
        name = "latents" if "latents" in item else "pixel_values"
        side, objects = item[name].shape[-1] * self._factor, self._source.masks([row])
        hole = draw_masks(self.kind, torch.tensor([number]), side, seed=self._seed, objects=objects)
        if self._images is None:
            frame = self.system.frame(item[name][None], pooled(hole, self._factor), self._patch)
            return item | {name: frame.pictures[0], "hole": frame.mask[0]}
        pixels = self._source.batch([row])["pixel_values"]
        frame = self.system.frame(pixels, hole, self._factor * self._patch)
        encoded = {name: x[0].cpu() for name, x in self._images(frame.pictures).items()}
        return item | encoded | {"hole": pooled(frame.mask, self._factor)[0]}


def holes_of(arguments: TrainArguments, model: nn.Module, dataset, factor: int, seed: int) -> Holes | None:
    """The holes of a data set's samples; None for another task."""
    if arguments.task != "inpaint":
        return None
    source, images = getattr(dataset, "source", dataset), getattr(dataset, "images", None)
    return Holes(arguments, source, transformer_of(model).config.patch_size, factor, seed, images)
