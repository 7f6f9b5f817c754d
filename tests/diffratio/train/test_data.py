"""Which images a run takes: in the size that the model was made for, unless told otherwise."""

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image

from diffratio.cli import dispatch
from diffratio.train import ArgumentError, TrainArguments
from diffratio.train.data import load_splits
from diffratio.train.model import load_base


@pytest.fixture
def splits(tmp_path):
    """resolution -> the training and the held-out data of a folder of images for the shapes model."""
    for i in range(10):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        (tmp_path / "metadata.jsonl").open("a").write(f'{{"file_name": "{i}.png", "text": "image {i}"}}\n')

    def load(resolution):
        arguments = TrainArguments(
            pretrained_model_name_or_path="shapes", dataset_name=str(tmp_path), resolution=resolution
        )
        return load_splits(arguments, load_base(arguments), Accelerator(cpu=True), progress=False)

    return load


@pytest.mark.parametrize("resolution", [None, 16])
def test_images_have_the_size_of_the_model_or_the_one_asked_for(splits, resolution):
    assert [split[0]["pixel_values"].shape for split in splits(resolution)] == 2 * [
        (3, resolution or 32, resolution or 32)
    ]


def test_a_size_that_the_models_patches_do_not_divide_is_refused(splits):
    with pytest.raises(ArgumentError, match="^resolution=10 must be a multiple of the model's patches of 4"):
        splits(10)
    with pytest.raises(ArgumentError, match="^resolution must be a multiple of 16, or less, got 33"):
        splits(33)


def test_a_broken_image_ends_the_command_with_its_name(splits, tmp_path):
    for path in tmp_path.glob("*.png"):
        path.write_bytes(path.read_bytes()[:-2000])
    words = ["--json", "--method", "dense", "--report_to", "none", "--max_train_steps", "1"]
    words += ["--pretrained_model_name_or_path", "shapes", "--dataset_name", str(tmp_path)]
    words += ["--train_batch_size", "2", "--output_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match=r"^diffratio train: image .*\.png cannot be read: "):
        dispatch(["train", *words])
