import numpy as np
import pytest
import torch

from diffratio.plots.pictures import picture
from diffratio.plots.scores import score_maps, scores_of_ratios


def test_below_what_the_model_is_given_stand_the_scores_of_each_layer():
    noisy, scores = torch.rand(2, 3, 3, 8, 8) * 2 - 1, torch.rand(2, 3, 4, 16)
    figure = score_maps(noisy, scores, [999, 499, 49], "scores")
    for sample, panel in enumerate(figure.subfigs[:2]):
        grid = np.array(panel.axes[:15]).reshape(5, 3)
        assert [axes.get_title() for axes in grid[0]] == ["t = 999", "t = 499", "t = 49"]
        assert [axes.get_ylabel() for axes in grid[:, 0]] == ["image", *(f"layer {i}" for i in range(4))]
        np.testing.assert_allclose(grid[0, 1].images[0].get_array(), picture(noisy[sample, 1]))
        shown = grid[3, 1].images[0]
        np.testing.assert_allclose(shown.get_array(), scores[sample, 1, 2].view(4, 4))
        assert shown.get_clim() == (scores.min().item(), scores.max().item())
    assert figure.subfigs[2].axes[-1].get_ylabel() == "score"


def test_scores_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="timesteps 1: n or T differ"):
        score_maps(torch.rand(2, 3, 3, 8, 8), torch.rand(2, 3, 4, 16), [1], "")
    with pytest.raises(ValueError, match="15 tokens, which are no square"):
        score_maps(torch.rand(2, 1, 3, 8, 8), torch.rand(2, 1, 4, 15), [1], "")
    with pytest.raises(ValueError, match=r"must be \[L, R\] alike"):
        scores_of_ratios(np.ones((2, 1)), np.ones((2, 2)), "")


def test_there_is_a_point_for_each_layer_and_region_and_their_correlation():
    ratios = np.array([[1.0, 0.5], [0.8, 0.3]])
    figure = scores_of_ratios(ratios, 0.2 + 0.5 * ratios, "scores and ratios")
    axes = figure.axes[0]
    points = axes.collections[0].get_offsets()
    np.testing.assert_allclose(points, [[100, 0.7], [50, 0.45], [80, 0.6], [30, 0.35]])
    assert (
        axes.get_title(loc="left") == "correlation 1.00; larger: noisier timesteps"
        and figure.axes[1].get_ylabel() == "layer"
    )
    np.testing.assert_allclose(axes.collections[0].get_array(), [0, 0, 1, 1])


def test_equal_ratios_have_no_correlation():
    scores = np.array([[0.4], [np.nan]])
    assert scores_of_ratios(np.ones((2, 1)), scores, "").axes[0].get_title(loc="left") == ""
