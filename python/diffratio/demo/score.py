"""The judge: a classifier trained on real digits says how many samples show the class asked for."""

from functools import cache

import torch
from sklearn.svm import SVC
from torch import Tensor

from ..data.digits import load_split

_GAMMA = 0.064  # scikit-learn's own digits example has 0.001 on pixels from 0 to 16: times 8 squared


@cache
def classifier() -> SVC:
    """Return a support-vector classifier fitted to the real training digits, each also shifted sideways."""
    images, labels = load_split("train")
    padded = torch.nn.functional.pad(images, (1, 1), value=-1.0)
    shifted = torch.cat([images, padded[..., 2:], padded[..., :-2]])
    return SVC(C=10.0, gamma=_GAMMA).fit(shifted.flatten(1).numpy(), labels.repeat(3).numpy())


def accuracy(images: Tensor, labels: Tensor) -> float:
    """Return the share of ``images`` (``[n, 1, 8, 8]`` in [-1, 1]) that are taken for their ``labels``."""
    predicted = torch.from_numpy(classifier().predict(images.flatten(1).numpy()))
    return (predicted == labels).float().mean().item()


def held_out_accuracy() -> float:
    """Return the classifier's accuracy on real digits that nothing was trained on."""
    return accuracy(*load_split("held_out"))
