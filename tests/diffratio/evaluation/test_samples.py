"""Samples in a folder: judged is what it holds, and what it holds is not made again."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.multiprocessing.reductions import StorageWeakRef

from diffratio.diffusion import sampling
from diffratio.evaluation import quality
from diffratio.evaluation.quality import Judge, SampleSettings
from diffratio.evaluation.samples import SampleFolder, digest
from diffratio.evaluation.target import load_target


@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_back_as_they_were_written(channels, tmp_path: Path):
    folder, images = SampleFolder(tmp_path / "new", {"seed": 0}), torch.rand(5, channels, 4, 6) * 2 - 1
    written = torch.cat([folder.write(0, images[:2]), folder.write(2, images[2:])])
    assert (written - images).abs().max() <= 1 / 255 + 1e-6
    again = SampleFolder(tmp_path / "new", {"seed": 0})
    assert torch.equal(torch.cat(list(again.read(5, 2))), written)
    assert Image.open(tmp_path / "new" / "000004.png").mode == ("L" if channels == 1 else "RGB")
    # Only parts that are all there, and none behind a gap.
    (tmp_path / "new" / "000002.png").unlink()
    assert [len(part) for part in again.read(5, 2)] == [2]


def test_a_folder_of_other_samples_is_refused(tmp_path: Path):
    SampleFolder(tmp_path / "samples", {"seed": 0, "steps": 4})
    with pytest.raises(ValueError, match="keep_samples: .* holds samples with another steps; give another"):
        SampleFolder(tmp_path / "samples", {"seed": 0, "steps": 5})
    (tmp_path / "photos").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "photos" / "000000.png")
    with pytest.raises(ValueError, match="keep_samples: .* holds other files"):
        SampleFolder(tmp_path / "photos", {})


def test_weights_are_told_apart():
    model = load_target("digits").model
    before = digest(model)
    assert digest(load_target("digits").model) == before
    model.transformer_blocks[2].ff.net[2].bias.data[3] += 1e-3
    assert digest(model) != before


@pytest.fixture
def judged(monkeypatch):
    """A judge of ten samples, made four at a time, and a target; predictions are left out."""
    monkeypatch.setattr(sampling, "CHUNK", 4)
    monkeypatch.setattr(Judge, "_errors", lambda *_: {})
    return Judge("digits", SampleSettings(10, steps=2), progress=False), load_target("digits")


def test_an_evaluation_that_was_stopped_goes_on_to_the_same_figures(judged, tmp_path: Path):
    judge, target = judged
    shown, figures = judge(target, folder=SampleFolder(tmp_path, {}))
    written = sorted(tmp_path.glob("*.png"))
    assert len(written) == 10
    for path in written[6:]:
        path.unlink()  # the second of three calls was not finished
    made = []
    target.model.register_forward_pre_hook(lambda _, args: made.append(len(args[0])))
    images, again = judge(target, folder=SampleFolder(tmp_path, {}))
    assert made == [8, 8, 4, 4]  # two steps of 4 and of 2 guided images
    assert torch.equal(images, shown) and again == figures
    assert judge(target, folder=SampleFolder(tmp_path, {}))[1] == figures and len(made) == 4


def test_scores_see_every_sample_once_in_order_with_its_caption(judged):
    class Seen:
        def __init__(self):
            self.images, self.captions = [], []

        def add(self, images, captions):
            assert len(images) == len(captions) <= 4
            self.images.append(images)
            self.captions += captions

        def figures(self):
            return {"seen": len(self.captions)}

    (judge, target), seen = judged, Seen()
    (shown, figures), images = judge(target, scores=[seen]), judge.samples(target)
    assert figures["seen"] == 10 and seen.captions == judge.held_out.captions(judge.wanted)
    assert torch.equal(torch.cat(seen.images), images) and torch.equal(shown, images)


def test_samples_that_were_judged_are_let_go(judged, monkeypatch):
    monkeypatch.setattr(quality, "SHOWN", 3)

    class Watching:
        storages = []

        def add(self, images, captions):
            assert sum(not one.expired() for one in self.storages) <= 1  # the part before, at most
            self.storages.append(StorageWeakRef(images.untyped_storage()))

        def figures(self):
            return {}

    judge, target = judged
    shown, _ = judge(target, scores=[Watching()])
    assert len(Watching.storages) == 3 and len(shown) == 3


def test_fid_compares_with_images_that_nothing_trained_on():
    judge = Judge("shapes", SampleSettings(2), progress=False)
    images = torch.cat(list(judge.held_out_images()))
    assert torch.equal(images, judge.held_out.batch(range(2048))["pixel_values"])
