import numpy as np
import pytest
import torch

from diffratio.plots.pictures import (
    _DROPPED,
    draw_grid,
    draw_rows,
    draw_shares,
    kept_picture,
    picture,
    router_maps,
    side_by_side,
)
from diffratio.plots.style import draw_table, new_figure


def test_shares_have_layers_down_and_timesteps_right():
    figure, shares = new_figure(4, 3, "shares"), torch.rand(3, 2, 16)
    draw_shares(figure, shares, [1, 500, 999])
    *maps, bar = figure.axes
    grid = np.array(maps).reshape(2, 3)
    assert [axes.get_title() for axes in grid[0]] == ["t = 1", "t = 500", "t = 999"]
    for (layer, column), axes in np.ndenumerate(grid):
        assert (axes.images[0].get_array() == shares[column, layer].view(4, 4).numpy()).all()
        assert axes.images[0].get_clim() == (0, 1)
    with pytest.raises(ValueError, match="shares has 3 timesteps but timesteps lists 1"):
        draw_shares(figure, shares, [1])


def test_rows_of_images_stand_below_each_other():
    axes = new_figure(2, 2, "").subplots()
    rows = [torch.full((1, 1, 8, 8), -1.0), torch.linspace(-1, 1, 2).view(2, 1, 1, 1).expand(2, 1, 8, 8)]
    draw_rows(axes, rows, ["a", "b"])
    canvas = axes.images[0].get_array()
    assert canvas.shape == (17, 17, 3) and [one.get_text() for one in axes.get_yticklabels()] == ["a", "b"]
    assert (canvas[:9] == 1).all() and (canvas[9:, :9] == 1).all()  # -1 is paper, and so are the gaps
    assert (canvas[9:, 9:] == 0).all()


def test_a_table_shows_every_cell():
    axes, rows = new_figure(4, 2, "").subplots(), [("", "x"), ("what", "1 ms")]
    draw_table(axes, rows)
    cells = axes.tables[0].get_celld()
    assert {place: cell.get_text().get_text() for place, cell in cells.items()} == {
        (r, c): cell for r, row in enumerate(rows) for c, cell in enumerate(row)
    }


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


def test_what_is_outside_of_the_hole_turns_pale_grey():
    image = torch.linspace(-1, 1, 48).view(3, 4, 4)
    kept, hole = torch.tensor([True, False, False, False]), torch.tensor([True, True, False, False])
    shown, plain = kept_picture(image, kept, hole), picture(image)
    whole = kept_picture(image, kept)
    np.testing.assert_allclose(shown[:2], whole[:2], atol=1e-6)
    grey = plain[2:].mean(-1, keepdims=True).repeat(3, -1)
    np.testing.assert_allclose(shown[2:], grey + 0.6 * (1 - grey), atol=1e-6)


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
    monkeypatch.setattr("diffratio.plots.pictures.save", lambda figure, path: drawn.append(figure) or path)
    images = torch.rand(5, 1, 4, 4) * 2 - 1
    path = draw_grid(tmp_path / "x.png", images, list("abcde"), 3, "samples")
    axes = drawn[0].axes
    assert path == tmp_path / "x.png" and len(axes) == 6 and drawn[0].get_suptitle() == "samples"
    assert [one.get_xlabel() for one in axes] == [*"abcde", ""]
    np.testing.assert_allclose(axes[3].images[0].get_array(), picture(images[3]))
    assert not axes[5].images
    with pytest.raises(ValueError, match="captions: 1 for 5 images"):
        draw_grid(path, images, ["a"], 3, "")


def test_models_stand_below_each_other_with_the_prompts_above():
    rows = {name: torch.rand(3, 3, 4, 4) * 2 - 1 for name in ("dense", "lt")}
    figure = side_by_side(rows, ["a red box", "b", "c"], "same noise")
    grid = np.array(figure.axes).reshape(2, 3)
    assert [axes.get_title() for axes in grid[0]] == ["a red box", "b", "c"]
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["dense", "lt"]
    np.testing.assert_allclose(grid[1, 2].images[0].get_array(), picture(rows["lt"][2]))
