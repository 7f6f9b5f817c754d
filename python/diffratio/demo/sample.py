"""Sampling digits by class."""

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor

from ..data.digits import CLASSES, NULL_CLASS
from ..evaluation import sampling


def balanced_labels(per_class: int) -> Tensor:
    """Return int64 ``[10 * per_class]``: every class in turn, so that row i of a grid is class i."""
    return torch.arange(CLASSES).repeat_interleave(per_class)


def sample(
    model: PixArtTransformer2DModel, class_tokens: Tensor, labels: Tensor, *, seed: int, **options
) -> Tensor:
    """Return images float32 ``[n, 1, 8, 8]`` in [-1, 1] on the CPU, of the given ``labels`` (int64 ``[n]``).

    ``class_tokens`` is ``[11, 4, 32]``; the options are those of ``evaluation.sampling.sample``.
    """
    return sampling.sample(model, class_tokens[labels], class_tokens[NULL_CLASS], seed=seed, **options)
