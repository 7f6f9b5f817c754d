import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from diffratio.demo.picture import compose, montage


def test_montage_puts_each_class_in_a_row():
    images = torch.linspace(-1, 1, 30).view(30, 1, 1, 1).expand(30, 1, 8, 8)
    canvas = montage(images, columns=2)
    assert canvas.shape == (89, 17)
    assert canvas[0, 0] == 1.0  # -1 is paper
    assert np.isnan(canvas[8]).all() and np.isnan(canvas[:, 8]).all()
    assert canvas[9, 9] == pytest.approx(1 - 4 / 29)  # second class, second sample: image 4


def report(layers: int) -> dict:
    cost = {"gflop": 1.0, "milliseconds": 2.0, "peak_megabytes": 3.0}
    return {
        "real_accuracy": 0.99,
        "dense": {"accuracy": 0.98, "v_mse": 0.2},
        "sparse": {"accuracy": 0.97, "v_mse": 0.3},
        "kept": {"mean_ratio": 0.7, "mean_of_bins": 0.725, "tenths": [[5, 10, 6], [7, 9, 8]][:layers]},
        "costs": [{"what": "it", "dense": cost, "all_tokens": cost, "sparse": cost}],
    }


def test_the_table_runs_from_noise_to_image_and_stands_beside_the_maps():
    images, kept = torch.zeros(20, 1, 8, 8), torch.rand(3, 2, 8, 8)
    figure = compose(images, images, kept, [999, 500, 1], report(layers=2))
    (axes,) = (axes for axes in figure.findobj(Axes) if axes.get_xlabel() == "timestep")
    assert [text.get_text() for text in axes.texts] == ["60", "100", "50", "80", "90", "70"]
    assert axes.images[0].get_array().tolist() == [[60, 100, 50], [80, 90, 70]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1000", "667", "333", "0"]
    maps = [axes.images[0].get_array() for axes in figure.findobj(Axes) if axes.images][3:9]
    for shown, wanted in zip(maps, kept.transpose(0, 1).flatten(0, 1), strict=True):
        assert (shown == wanted.numpy()).all()


@pytest.mark.parametrize(
    "timesteps, layers, message",
    [([1], 2, "kept has 3 timesteps but timesteps lists 1"), ([3, 2, 1], 1, "kept has 2 layers but .* 1")],
)
def test_maps_that_do_not_match_are_refused(timesteps: list[int], layers: int, message: str):
    images = torch.zeros(10, 1, 8, 8)
    with pytest.raises(ValueError, match=message):
        compose(images, images, torch.rand(3, 2, 8, 8), timesteps, report(layers))
