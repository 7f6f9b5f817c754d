"""FID, CLIP score and HPSv2 through torch-fidelity and open_clip, from weights on disk: no download."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .frechet import Moments, gaussian_distance
from .samples import levels_of

FEATURES = 2048
"""Of Inception: a covariance of fewer images is singular, and FID depends on how many they are."""

_CHUNK = 64


@dataclass(frozen=True)
class Networks:
    """Files of the networks that judge samples; None leaves the metric out.

    Args:
        fid: torch-fidelity's ``weights-inception-2015-12-05-6726825d.pth``.
        clip: a checkpoint of open_clip's ViT-B-32.
        hps: a checkpoint of HPSv2, which is an open_clip ViT-H-14.
    """

    fid: Path | None = None
    clip: Path | None = None
    hps: Path | None = None

    @property
    def missing(self) -> list[str]:
        """The metrics that are left out, and the options that add them."""
        names = {"fid": "FID", "clip": "CLIP score", "hps": "HPSv2"}
        return [f"{name} (--{key}-weights)" for key, name in names.items() if getattr(self, key) is None]


class Critics:
    """The networks, loaded. ``scores`` returns what one model's samples are added to.

    Args:
        networks: their files.
        device: where they run.

    Raises:
        ValueError: a file or a package is missing; the message names the option.
    """

    def __init__(self, networks: Networks, device: torch.device | str = "cpu") -> None:
        self.networks, self._real = networks, None
        self._fid = None if networks.fid is None else Inception(networks.fid, device)
        pairs = ((networks.clip, clip_score), (networks.hps, hps_score))
        self._pairs = [make(path, device) for path, make in pairs if path is not None]

    def scores(self, reference: Callable[[], Iterable[Tensor]]) -> list["FidScore | PairScore"]:
        """Return new scores, one of each network.

        Args:
            reference: yields the real images that FID compares with, ``[n, C, H, W]`` in [-1, 1]; asked once.
        """
        pairs = [PairScore(network) for network in self._pairs]
        if self._fid is None:
            return pairs
        self._real = self._real or self._fid.moments(reference())
        return [FidScore(self._fid, self._real), *pairs]


class Inception:
    """torch-fidelity's Inception v3, the features of FID."""

    def __init__(self, weights: Path, device: torch.device | str = "cpu") -> None:
        needed = "torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity"
        path, module = _found("fid_weights", weights, *needed)
        with _reading("fid_weights", path):
            extractor = module.FeatureExtractorInceptionV3(
                "inception-v3-compat", [str(FEATURES)], feature_extractor_weights_path=path
            )
        self._extractor, self._device = extractor.eval().to(device), device

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return ``[n, 2048]`` of images ``[n, C, H, W]`` in [-1, 1]."""
        chunks = _bytes(images).split(_CHUNK)
        return torch.cat([self._extractor(chunk.to(self._device))[0].cpu() for chunk in chunks])

    def moments(self, chunks: Iterable[Tensor]) -> Moments:
        """Return the moments of the features of all images."""
        moments = Moments()
        for images in chunks:
            moments.add(self.features(images))
        return moments


class FidScore:
    """FID of the samples that are added; only moments are kept of them."""

    def __init__(self, inception: Inception, real: Moments) -> None:
        self._inception, self._real, self._made = inception, real, Moments()

    def add(self, images: Tensor, captions: list[str]) -> None:
        """Take in samples ``[n, C, H, W]`` in [-1, 1]."""
        self._made.add(self._inception.features(images))

    def figures(self) -> dict[str, Any]:
        """Return ``fid``, and ``fid_reference``, how many real images it compares with."""
        distance = gaussian_distance(self._real.gaussian(), self._made.gaussian())
        return {"fid": distance, "fid_reference": self._real.count}


class PairNetwork:
    """An open_clip model: the cosine of an image and its caption, times ``scale``.

    Args:
        name: of the metric, in reports.
        architecture: as open_clip calls it.
        weights: its checkpoint, which is read as weights only.
        scale: of the printed figure.
        device: where it runs.
    """

    def __init__(
        self, name: str, architecture: str, weights: Path, scale: float, device: torch.device | str
    ) -> None:
        argument = f"{name.partition('_')[0]}_weights"
        path, open_clip = _found(argument, weights, "open_clip", "open_clip_torch")
        self.name, self._scale, self._device = name, scale, device
        with _reading(argument, path):  # as weights only: code in a checkpoint is refused
            self._model, self._preprocess = open_clip.create_model_from_pretrained(
                architecture, pretrained=path, device=device
            )
        self._model.eval()
        self._tokenizer = open_clip.get_tokenizer(architecture)

    @torch.no_grad()
    def __call__(self, images: Tensor, captions: list[str]) -> list[float]:
        """Return the score of each of the images ``[n, C, H, W]`` in [-1, 1]."""
        scores = []
        for start in range(0, len(images), _CHUNK):
            rows = slice(start, start + _CHUNK)
            pictures = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in _bytes(images[rows])]
            pixels = torch.stack([self._preprocess(one) for one in pictures])
            seen = self._model.encode_image(pixels.to(self._device))
            read = self._model.encode_text(self._tokenizer(captions[rows]).to(self._device))
            scores += (self._scale * torch.cosine_similarity(seen.float(), read.float())).tolist()
        return scores


def clip_score(weights: Path, device: torch.device | str = "cpu") -> PairNetwork:
    """CLIP score: the cosine in the space of CLIP's ViT-B/32."""
    return PairNetwork("clip_score", "ViT-B-32", weights, 1.0, device)


def hps_score(weights: Path, device: torch.device | str = "cpu") -> PairNetwork:
    """HPSv2, as its authors print it: 100 times the cosine in the space of a ViT-H/14 that was tuned on what
    people prefer."""
    return PairNetwork("hps", "ViT-H-14", weights, 100.0, device)


class PairScore:
    """The score of every sample that is added."""

    def __init__(self, network: PairNetwork) -> None:
        self._network, self._scores = network, []

    def add(self, images: Tensor, captions: list[str]) -> None:
        """Take in samples ``[n, C, H, W]`` in [-1, 1]."""
        self._scores += self._network(images, captions)

    def figures(self) -> dict[str, Any]:
        """Return the mean under the metric's name, ``_error``, its standard error, and ``_by_sample``."""
        name, scores = self._network.name, torch.tensor(self._scores, dtype=torch.float64)
        error = scores.std().item() / math.sqrt(len(scores))
        return {name: scores.mean().item(), f"{name}_error": error, f"{name}_by_sample": self._scores}


def _bytes(images: Tensor) -> Tensor:
    """uint8 [n, 3, H, W]; one channel is repeated."""
    return levels_of(images).to(torch.uint8).expand(-1, 3, -1, -1)


def _found(argument: str, weights: Path, module: str, package: str) -> tuple[str, ModuleType]:
    """The file of weights and the module that reads it; a ValueError names the argument."""
    if not Path(weights).is_file():
        raise ValueError(f"{argument}: no file {weights}; weights must be on disk, none are downloaded")
    try:
        return str(weights), import_module(module)
    except ModuleNotFoundError:
        raise ValueError(f"{argument} needs {package}: pip install {package}") from None


@contextmanager
def _reading(argument: str, path: str) -> Iterator[None]:
    """Whatever a package makes of a file that is not its own becomes a ValueError that names the argument."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{argument}: {path} cannot be read ({str(error).partition(chr(10))[0]})") from error
