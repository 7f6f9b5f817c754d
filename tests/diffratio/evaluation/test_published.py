"""The packages are not installed where the tests run: these stand-ins have the part that is called."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from diffratio.evaluation.frechet import Gaussian, gaussian_distance
from diffratio.evaluation.published import ClipScore, Fid


class Extractor(nn.Module):
    """Features are the means of the four quarters of the image, in levels."""

    made: list[tuple] = []

    def __init__(self, name, features, feature_extractor_weights_path):
        super().__init__()
        self.made.append((name, features, feature_extractor_weights_path))

    def forward(self, images):
        assert images.dtype == torch.uint8 and images.shape[1] == 3 and not self.training
        return (nn.functional.adaptive_avg_pool2d(images[:, :1].float(), 2).flatten(1),)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    path.touch()
    return path


def test_fid_is_the_distance_of_the_extractors_features(weights: Path, monkeypatch):
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Extractor
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    real, generated = (torch.rand(100, 1, 8, 8) * scale - 1 for scale in (2, 1.5))

    def moments(images):
        levels = ((images + 1) * 127.5).round()
        return Gaussian.of(nn.functional.adaptive_avg_pool2d(levels, 2).flatten(1))

    expected = gaussian_distance(moments(real), moments(generated))
    assert Fid(weights)(real, generated) == pytest.approx(expected, rel=1e-5) and expected > 100
    assert Extractor.made == [("inception-v3-compat", ["2048"], str(weights))]


def test_the_clip_score_is_the_mean_cosine(weights: Path, monkeypatch):
    class Clip(nn.Module):
        def encode_image(self, images):
            return torch.stack([images.flatten(1).mean(1), torch.ones(len(images))], dim=1)

        def encode_text(self, lengths):
            return torch.stack([torch.zeros(len(lengths)), lengths], dim=1)

    def create(architecture, pretrained, device):
        assert (architecture, pretrained) == ("ViT-B-32", str(weights))
        return Clip(), lambda picture: torch.tensor(float(picture.getpixel((0, 0))[0])).view(1, 1, 1)

    stand_in = SimpleNamespace(
        create_model_from_pretrained=create,
        get_tokenizer=lambda name: lambda texts: torch.tensor([float(len(t)) for t in texts]),
    )
    monkeypatch.setitem(sys.modules, "open_clip", stand_in)
    images = torch.full((70, 3, 4, 4), -1.0)
    images[:35] = 1  # level 255: cosine 1 / sqrt(255^2 + 1); black: 1
    expected = (1 / (255**2 + 1) ** 0.5 + 1) / 2
    assert ClipScore(weights)(images, ["a caption"] * 70) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "metric, argument, package",
    [(Fid, "fid_weights", "torch-fidelity"), (ClipScore, "clip_weights", "open_clip_torch")],
)
def test_what_is_missing_is_named(metric, argument, package, weights: Path, monkeypatch):
    with pytest.raises(ValueError, match=f"{argument}: no file .*none are downloaded"):
        metric(weights.with_name("missing.pth"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match=f"{argument} needs {package}: pip install {package}"):
        metric(weights)
