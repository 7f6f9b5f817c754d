"""FID, CLIP score and HPSv2. Their packages are not installed where the tests run: stand-ins have the part
that is called; with open_clip at hand the last test runs it with a small ViT of its own."""

import json
import statistics
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from diffratio.evaluation.frechet import Gaussian, gaussian_distance
from diffratio.evaluation.networks import Critics, Inception, Networks, PairNetwork, clip_score, hps_score


class Extractor(nn.Module):
    """Features are the means of the four quarters of the image, in levels."""

    made: list[tuple] = []

    def __init__(self, name, features, feature_extractor_weights_path):
        super().__init__()
        self.made.append((name, features, feature_extractor_weights_path))

    def forward(self, images):
        assert images.dtype == torch.uint8 and images.shape[1] == 3 and not self.training
        return (nn.functional.adaptive_avg_pool2d(images[:, :1].float(), 2).flatten(1),)


class Pairs(nn.Module):
    """Images become (their level, 1), captions (0, their length beyond 8)."""

    def encode_image(self, images):
        return torch.stack([images.flatten(1).mean(1), torch.ones(len(images))], dim=1)

    def encode_text(self, lengths):
        return torch.stack([torch.zeros(len(lengths)), lengths - 8], dim=1)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    path.touch()
    return path


@pytest.fixture
def packages(monkeypatch) -> list[tuple]:
    """Puts the stand-ins in their place; returns what open_clip was asked for."""
    asked = []

    def create(architecture, pretrained, device):
        asked.append((architecture, pretrained))
        return Pairs(), lambda picture: torch.tensor(float(picture.getpixel((0, 0))[0])).view(1, 1, 1)

    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Extractor
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    stand_in = SimpleNamespace(
        create_model_from_pretrained=create,
        get_tokenizer=lambda name: lambda texts: torch.tensor([float(len(t)) for t in texts]),
    )
    monkeypatch.setitem(sys.modules, "open_clip", stand_in)
    return asked


def added(score, images, parts=3):
    for part in images.chunk(parts):
        score.add(part, ["a caption"] * len(part))
    return score.figures()


def test_fid_of_samples_in_parts_is_the_distance_of_all_features(weights: Path, packages):
    real, generated = (torch.rand(100, 1, 8, 8) * scale - 1 for scale in (2, 1.5))
    critics = Critics(Networks(fid=weights))
    first, second = critics.scores(lambda: real.split(7)) + critics.scores(lambda: pytest.fail("once"))

    def moments(images):
        levels = ((images + 1) * 127.5).round()
        return Gaussian.of(nn.functional.adaptive_avg_pool2d(levels, 2).flatten(1))

    expected = gaussian_distance(moments(real), moments(generated))
    found = added(first, generated)
    assert found == {"fid": pytest.approx(expected, rel=1e-5), "fid_reference": 100} and expected > 100
    assert added(second, real)["fid"] == pytest.approx(0, abs=1e-6)
    assert Extractor.made[-1] == ("inception-v3-compat", ["2048"], str(weights))


@pytest.mark.parametrize(
    "option, name, architecture, scale",
    [("clip", "clip_score", "ViT-B-32", 1), ("hps", "hps", "ViT-H-14", 100)],
)
def test_a_score_of_pairs_is_the_mean_cosine_of_every_sample(
    option, name, architecture, scale, weights: Path, packages
):
    [score] = Critics(Networks(**{option: weights})).scores(lambda: pytest.fail("of FID alone"))
    images = torch.full((70, 3, 4, 4), -1.0)
    images[:35] = 1  # level 255: cosine 1 / sqrt(255^2 + 1); black: 1, or -1 where the caption is short
    wanted = [scale / (255**2 + 1) ** 0.5] * 35 + [scale] * 29 + [-scale] * 6
    score.add(images, ["a caption"] * 64 + ["a"] * 6)
    found = score.figures()
    assert found[f"{name}_by_sample"] == pytest.approx(wanted)
    assert found[name] == pytest.approx(statistics.fmean(wanted))
    assert found[f"{name}_error"] == pytest.approx(statistics.stdev(wanted) / 70**0.5)
    assert packages == [(architecture, str(weights))]


def test_each_model_gets_scores_of_its_own_from_networks_that_are_loaded_once(weights: Path, packages):
    read = []

    def reference():
        read.append("once")
        yield torch.rand(9, 1, 8, 8)

    critics = Critics(Networks(weights, weights, weights))
    made = [critics.scores(reference) for _ in range(3)]
    names = [{key for score in scores for key in added(score, torch.rand(6, 1, 8, 8))} for scores in made]
    assert names[0] == names[2] >= {"fid", "clip_score", "hps"} and len(packages) == 2 and len(read) == 1
    assert Critics(Networks()).scores(reference) == []


@pytest.mark.parametrize(
    "load, argument, package",
    [
        (Inception, "fid_weights", "torch-fidelity"),
        (clip_score, "clip_weights", "open_clip_torch"),
        (hps_score, "hps_weights", "open_clip_torch"),
    ],
)
def test_what_is_missing_is_named(load, argument, package, weights: Path, monkeypatch):
    with pytest.raises(ValueError, match=f"{argument}: no file .*none are downloaded"):
        load(weights.with_name("missing.pth"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match=f"{argument} needs {package}: pip install {package}"):
        load(weights)
    every = Networks().missing
    assert f"--{argument.replace('_', '-')}" in " ".join(every) and len(every) == 3


def test_a_file_that_is_no_checkpoint_is_named(weights: Path, packages, monkeypatch):
    def broken(*_, **__):
        raise KeyError("state_dict")

    monkeypatch.setattr(sys.modules["open_clip"], "create_model_from_pretrained", broken)
    with pytest.raises(ValueError, match="hps_weights: .*weights.pth cannot be read .'state_dict'"):
        hps_score(weights)
    monkeypatch.setattr(Extractor, "__init__", broken)
    with pytest.raises(ValueError, match="fid_weights: .*weights.pth cannot be read"):
        Inception(weights)


SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def test_open_clip_itself_scores_with_a_checkpoint_like_that_of_hpsv2(tmp_path: Path):
    open_clip = pytest.importorskip("open_clip")
    (tmp_path / "small-vit.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(tmp_path / "small-vit.json")
    torch.manual_seed(0)
    model = open_clip.create_model("small-vit").eval()
    checkpoint = tmp_path / "hps.pt"
    torch.save({"epoch": 1, "name": "small", "state_dict": model.state_dict()}, checkpoint)
    images, captions = torch.rand(5, 3, 48, 48) * 2 - 1, ["a red box", "", "a", "two dogs", "a red box"]
    scored = PairNetwork("hps", "small-vit", checkpoint, 100.0, "cpu")(images, captions)
    pixels = torch.stack([scored_pixels(one) for one in images])
    with torch.no_grad():
        pairs = model(pixels, open_clip.get_tokenizer("small-vit")(captions))
    expected = 100 * (pairs[0] * pairs[1]).sum(1)  # as its authors: unit vectors, the diagonal
    assert scored == pytest.approx(expected.tolist(), abs=1e-3)
    torch.save({"state_dict": partial(print)}, checkpoint)  # code, which weights_only refuses
    with pytest.raises(ValueError, match="hps_weights: .*hps.pt cannot be read .*[Ww]eights"):
        PairNetwork("hps", "small-vit", checkpoint, 100.0, "cpu")


def scored_pixels(image):
    """CLIP's preprocessing of one picture, by Pillow: bicubic, then the mean and deviation of its data."""
    import numpy as np
    from PIL import Image

    levels = ((image + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    small = Image.fromarray(levels).resize((32, 32), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(small, dtype=np.float32)).permute(2, 0, 1) / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return (pixels - mean) / deviation
