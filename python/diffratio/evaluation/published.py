"""FID and CLIP score through torch-fidelity and open_clip, from weights on disk: nothing is downloaded."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from PIL import Image
from torch import Tensor

from .frechet import Gaussian, gaussian_distance

_CHUNK = 64
_FEATURES = "2048"
_ARCHITECTURE = "ViT-B-32"


class Fid:
    """FID in the features of Inception v3: ``Fid(weights)(real, generated)``, images [n, C, H, W] in [-1, 1].

    ``weights`` is torch-fidelity's file ``weights-inception-2015-12-05-6726825d.pth``. A ValueError tells
    that the file or the package is missing.
    """

    def __init__(self, weights: Path, device: torch.device | str = "cpu") -> None:
        needed = "torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity"
        path, module = _found("fid_weights", weights, *needed)
        extractor = module.FeatureExtractorInceptionV3(
            "inception-v3-compat", [_FEATURES], feature_extractor_weights_path=path
        )
        self._extractor, self._device = extractor.eval().to(device), device

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        return gaussian_distance(self._moments(real), self._moments(generated))

    @torch.no_grad()
    def _moments(self, images: Tensor) -> Gaussian:
        chunks = _bytes(images).split(_CHUNK)
        return Gaussian.of(torch.cat([self._extractor(chunk.to(self._device))[0].cpu() for chunk in chunks]))


class ClipScore:
    """Mean cosine of images ``[n, C, H, W]`` in [-1, 1] and their captions in the space of CLIP's ViT-B/32.

    ``weights`` is a checkpoint of open_clip. A ValueError tells that the file or the package is missing.
    """

    def __init__(self, weights: Path, device: torch.device | str = "cpu") -> None:
        path, open_clip = _found("clip_weights", weights, "open_clip", "open_clip_torch")
        self._model, self._preprocess = open_clip.create_model_from_pretrained(
            _ARCHITECTURE, pretrained=path, device=device
        )
        self._model.eval()
        self._tokenizer, self._device = open_clip.get_tokenizer(_ARCHITECTURE), device

    @torch.no_grad()
    def __call__(self, images: Tensor, captions: list[str]) -> float:
        cosines = []
        for start in range(0, len(images), _CHUNK):
            rows = slice(start, start + _CHUNK)
            pictures = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in _bytes(images[rows])]
            pixels = torch.stack([self._preprocess(one) for one in pictures])
            seen = self._model.encode_image(pixels.to(self._device))
            read = self._model.encode_text(self._tokenizer(captions[rows]).to(self._device))
            cosines.append(torch.cosine_similarity(seen.float(), read.float()).cpu())
        return torch.cat(cosines).mean().item()


def _bytes(images: Tensor) -> Tensor:
    """uint8 [n, 3, H, W]; one channel is repeated."""
    levels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.expand(-1, 3, -1, -1)


def _found(argument: str, weights: Path, module: str, package: str) -> tuple[str, ModuleType]:
    """The file of weights and the module that reads it; a ValueError names the argument."""
    if not Path(weights).is_file():
        raise ValueError(f"{argument}: no file {weights}; weights must be on disk, none are downloaded")
    try:
        return str(weights), import_module(module)
    except ModuleNotFoundError:
        raise ValueError(f"{argument} needs {package}: pip install {package}") from None
