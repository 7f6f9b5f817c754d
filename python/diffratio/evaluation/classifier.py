"""The judge: a small convolutional network that tells the attributes of an image, trained on real ones.

``python -m diffratio.evaluation.classifier`` made ``assets/``: 20 seconds of one CPU thread.
"""

import os
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..data import CaptionedDataset
from ..data.digits import Digits
from ..data.shapes import Shapes
from ..data.twins import MaskedTwins
from ..files import replacing
from ..progress import progress_bar

ASSETS = Path(__file__).parent / "assets"
FEATURES = 64

_WIDTHS = (32, 48, 64, 64)
_STEPS = 600
_BATCH = 64
_LEARNING_RATE = 2e-3
_NOISE = 0.05  # samples are never as clean as the drawings
_CHUNK = 256


class Classifier(nn.Module):
    """Images ``[n, C, S, S]`` in [-1, 1] -> 64 features -> logits of every attribute."""

    def __init__(self, channels: int, attribute_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.attribute_sizes = attribute_sizes
        layers: list[nn.Module] = []
        for i, (before, width) in enumerate(pairwise((channels, *_WIDTHS))):
            layers += [nn.Conv2d(before, width, 3, stride=1 if i == 0 else 2, padding=1, bias=False)]
            # Without it the faint texture of a background stays unseen.
            layers += [nn.BatchNorm2d(width), nn.GELU()]
        # Position is an attribute: a coarse map of places stays.
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.features = nn.Linear(16 * _WIDTHS[-1], FEATURES)
        self.heads = nn.Linear(FEATURES, sum(attribute_sizes))

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return features ``[n, 64]`` and for each attribute logits ``[n, size]``."""
        features = nn.functional.gelu(self.features(self.body(images)))
        return features, list(self.heads(features).split(self.attribute_sizes, dim=1))

    @torch.no_grad()
    def judge(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features float32 ``[n, 64]`` and the attributes seen, int64 ``[n, A]``, on the CPU."""
        device = self.heads.weight.device
        features, seen = [], []
        for chunk in images.split(_CHUNK):
            some, logits = self(chunk.to(device))
            features.append(some.cpu())
            seen.append(torch.stack([one.argmax(1) for one in logits], dim=1).cpu())
        return torch.cat(features), torch.cat(seen)


def train_classifier(dataset: CaptionedDataset, steps: int = _STEPS, progress: bool = True) -> Classifier:
    """Return a classifier of the attributes of ``dataset``, trained on ``steps`` batches from seed 0."""
    if not dataset.attribute_sizes:
        raise ValueError(f"dataset {dataset.name!r} has no attributes that a classifier could learn")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Classifier(dataset.channels, dataset.attribute_sizes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
        for _ in progress_bar(range(steps), show=progress, desc="training the classifier", unit="step"):
            batch = dataset.batch(torch.randint(len(dataset), (_BATCH,)))
            images = batch["pixel_values"]
            noise = _NOISE * torch.rand(len(images), 1, 1, 1) * torch.randn(images.shape)
            _, logits = model(images + noise)
            loss = sum(
                nn.functional.cross_entropy(one, batch["attributes"][:, a]) for a, one in enumerate(logits)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    return model.eval()


def classifier(dataset: CaptionedDataset, progress: bool = True) -> Classifier:
    """Return the classifier of a data set: the shipped one, the one in the user's cache, or a new one."""
    shipped = ASSETS / f"{dataset.name}.safetensors"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffratio"
    path = shipped if shipped.is_file() else cache / f"classifier-{dataset.name}.safetensors"
    if not path.is_file():
        save(train_classifier(dataset, progress=progress), path)
    # A new one is read back too: rounded, it judges as it will from now on.
    model = Classifier(dataset.channels, dataset.attribute_sizes)
    model.load_state_dict(load_file(path))
    return model.eval()


def save(model: Classifier, path: Path) -> None:
    """Write the weights in fp16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = model.state_dict().items()
    with replacing(path) as partial:
        save_file({name: x.half() if x.is_floating_point() else x for name, x in tensors}, partial)


def attribute_accuracy(seen: Tensor, wanted: Tensor) -> tuple[list[float], float]:
    """Return the share of images right in each attribute, and in all at once; both ``[n, A]``."""
    if seen.shape != wanted.shape:
        raise ValueError(f"seen {tuple(seen.shape)} and wanted {tuple(wanted.shape)} must have one shape")
    right = seen == wanted
    return right.double().mean(0).tolist(), right.all(1).double().mean().item()


if __name__ == "__main__":
    for judged in (Digits("train"), Shapes("train"), MaskedTwins("train")):
        save(train_classifier(judged), ASSETS / f"{judged.name}.safetensors")
