from pathlib import Path

import numpy as np
import pytest
import torch

from diffratio.demo.picture import draw, montage


def test_montage_puts_each_class_in_a_row():
    images = torch.linspace(-1, 1, 30).view(30, 1, 1, 1).expand(30, 1, 8, 8)
    canvas = montage(images, columns=2)
    assert canvas.shape == (89, 17)
    assert canvas[0, 0] == 1.0  # -1 is paper
    assert np.isnan(canvas[8]).all() and np.isnan(canvas[:, 8]).all()
    assert canvas[9, 9] == pytest.approx(1 - 4 / 29)  # second class, second sample: image 4


def test_draw_writes_a_png_and_makes_its_folder(tmp_path: Path):
    images = torch.zeros(20, 1, 8, 8)
    path = tmp_path / "new" / "demo.png"
    rows = [("", "dense", "sparse", "ratio"), ("FLOPs", "1", "2", "3")]
    draw(
        path, images, images, torch.rand(3, 2, 8, 8), [999, 500, 1], titles=("a", "b"), caption=rows, note=""
    )
    assert path.read_bytes().startswith(b"\x89PNG")


def test_draw_refuses_maps_that_do_not_match_the_timesteps(tmp_path: Path):
    images = torch.zeros(10, 1, 8, 8)
    with pytest.raises(ValueError, match="kept has 3 timesteps but timesteps lists 1"):
        draw(
            tmp_path / "x.png",
            images,
            images,
            torch.rand(3, 2, 8, 8),
            [1],
            titles=("", ""),
            caption=[],
            note="",
        )
