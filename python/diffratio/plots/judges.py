"""Who makes and judges the samples of a figure, whatever a model was trained for."""

from typing import Any

from torch import Tensor

from ..evaluation.inpainting import Repainting
from ..evaluation.quality import Judge, SampleSettings
from ..evaluation.target import Target


class Painter(Repainting):
    """`Repainting` with the names of `Judge`: its samples are held-out images with painted holes."""

    def why_not(self, target: Target, *, quality: bool = False) -> str | None:
        """Why a model paints nothing here; None where it does."""
        if target.run["latents"]:
            return "the run repaints in latents: `diffratio inpaint` shows what it makes"
        return super().why_not(target)

    def samples(
        self, target: Target, description: str = "painting", captions: list[str] | None = None
    ) -> Tensor:
        """Return the images [n, C, H, W]; `captions` must be None, their text is that of the images."""
        if captions is not None:
            raise ValueError("prompt: is not for runs that repaint held-out images")
        return self.paint(target, description)

    def __call__(self, target: Target, description: str = "painting") -> tuple[Tensor, dict[str, Any]]:
        """Return the samples of a model, and how good they and its predictions are."""
        images = self.samples(target, description)
        return images, self.figures(images) | self.errors(target)


def judge_of(target: Target, settings: SampleSettings, progress: bool = True) -> Judge | Painter:
    """The judge for what a target was trained for, on its data set."""
    return (Painter if target.repaints else Judge.of)(target, settings, progress)
