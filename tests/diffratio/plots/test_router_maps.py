import numpy as np
import pytest
import torch

from diffratio.plots.grid import draw_grid
from diffratio.plots.router_maps import _DROPPED, kept_maps, kept_picture, picture, router_maps


class Entry:
    """What record_routing collects, as far as the maps read it: 2 samples without text and 2 with."""

    shape = (4, 4)

    def __init__(self, layer: int, timestep: float, tokens: list[int]):
        self.layer, self.timestep, self.tokens = layer, timestep, tokens

    def kept(self) -> torch.Tensor:
        return torch.zeros(16, dtype=torch.bool).index_fill(0, torch.tensor(self.tokens), True).view(4, 4)


def test_kept_maps_are_those_of_the_samples_with_text():
    log = [Entry(0, 999.0, [0, 8, 13]), Entry(1, 999.0, [12]), Entry(0, 499.0, [15]), Entry(1, 499.0, [4])]
    kept, timesteps = kept_maps(log, samples=2)
    assert timesteps == [999, 499] and kept.shape == (2, 2, 2, 4)
    assert kept.nonzero().tolist() == [[0, 0, 0, 0], [1, 0, 0, 1], [1, 0, 1, 0], [1, 1, 0, 3]]


def test_tokens_that_are_dropped_turn_pale_red():
    image = torch.linspace(-1, 1, 48).view(3, 4, 4)
    kept = torch.tensor([True, False, True, True])
    shown = kept_picture(image, kept)
    plain = image.permute(1, 2, 0).numpy() / 2 + 0.5
    np.testing.assert_allclose(picture(image), plain, atol=1e-6)
    dropped = np.zeros((4, 4), bool)
    dropped[:2, 2:] = True
    np.testing.assert_allclose(shown[~dropped], plain[~dropped], atol=1e-6)
    np.testing.assert_allclose(shown[dropped], 0.15 * plain[dropped] + 0.85 * np.array(_DROPPED), atol=1e-6)


def test_one_channel_is_dark_on_white():
    image = torch.tensor([[[-1.0, 1.0]]])
    assert picture(image).tolist() == [[[1.0] * 3, [0.0] * 3]]


def test_tokens_that_are_no_grid_are_refused():
    with pytest.raises(ValueError, match="kept has 3 tokens, not a grid on an image of 4 pixels"):
        kept_picture(torch.zeros(3, 4, 4), torch.ones(3, dtype=torch.bool))


def test_each_sample_has_a_panel_with_layers_down_and_timesteps_right():
    images, kept = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 4, 16) > 0.5
    figure = router_maps(images, kept, [999, 499, 49], "maps")
    assert len(figure.subfigs) == 2
    for sample, panel in enumerate(figure.subfigs):
        grid = np.array(panel.axes).reshape(4, 4)
        assert [axes.get_title() for axes in grid[0]] == ["sample", "t = 999", "t = 499", "t = 49"]
        assert [axes.get_ylabel() for axes in grid[:, 0]] == [f"layer {i}" for i in range(4)]
        np.testing.assert_allclose(grid[0, 0].images[0].get_array(), picture(images[sample]))
        shown = grid[2, 3].images[0].get_array()
        np.testing.assert_allclose(shown, kept_picture(images[sample], kept[sample, 2, 2]))
    with pytest.raises(ValueError, match="kept is .* for 2 images and 1 timesteps"):
        router_maps(images, kept, [1], "")


def test_a_grid_of_samples_is_written_with_its_captions(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("diffratio.plots.grid.save", lambda figure, path: drawn.append(figure) or path)
    images = torch.rand(5, 1, 4, 4) * 2 - 1
    path = draw_grid(tmp_path / "x.png", images, list("abcde"), 3, "samples")
    axes = drawn[0].axes
    assert path == tmp_path / "x.png" and len(axes) == 6 and drawn[0].get_suptitle() == "samples"
    assert [one.get_xlabel() for one in axes] == [*"abcde", ""]
    np.testing.assert_allclose(axes[3].images[0].get_array(), picture(images[3]))
    assert not axes[5].images
    with pytest.raises(ValueError, match="captions: 1 for 5 images"):
        draw_grid(path, images, ["a"], 3, "")
