import numpy as np
import pytest
from matplotlib.colors import to_hex

from diffratio.plots.ratios import region_map, trajectories
from diffratio.plots.style import INK, TARGET

STEPS = np.array([10, 20, 30])


@pytest.fixture
def ratios() -> np.ndarray:
    """[S, L, R] = [3, 4, 2]"""
    return np.linspace(1.0, 0.3, 24).reshape(3, 4, 2)


def test_there_is_a_line_for_each_layer_their_mean_and_the_target(ratios):
    figure = trajectories(STEPS, ratios, 0.7, "title of it")
    axes, bar = figure.axes
    *layers, mean, target = axes.lines
    assert len(layers) == 4 and figure.get_suptitle() == "title of it"
    for layer, line in enumerate(layers):
        np.testing.assert_allclose(line.get_ydata(), 100 * ratios[:, layer].mean(1))
        np.testing.assert_array_equal(line.get_xdata(), STEPS)
    np.testing.assert_allclose(mean.get_ydata(), 100 * ratios.mean((1, 2)))
    assert to_hex(mean.get_color()) == INK and to_hex(target.get_color()) == TARGET
    assert set(target.get_ydata()) == {70.0}
    assert axes.get_xlabel() == "training step" and axes.get_ylabel() == "kept tokens (%)"
    assert bar.get_ylabel() == "layer" and len({to_hex(line.get_color()) for line in layers}) == 4
    words = [text.get_text() for text in axes.get_legend().get_texts()]
    assert words == [f"mean, {100 * ratios[-1].mean():.1f} % at the end", "target, 70.0 %"]
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 100


def test_ratios_of_another_shape_are_refused(ratios):
    with pytest.raises(ValueError, match=r"ratios must be \[S, L, R\] with S = 2"):
        trajectories(STEPS[:2], ratios, 0.7, "")
    with pytest.raises(ValueError, match=r"ratios must be \[L, R\]"):
        region_map(ratios, "")


def test_one_step_and_one_layer_can_be_drawn():
    axes = trajectories(np.array([1]), np.ones((1, 1, 1)), 0.5, "").axes[0]
    assert len(axes.lines) == 3 and axes.get_xlim() == (1, 2)


def test_the_heat_map_holds_the_ratios_with_clean_timesteps_on_the_left(ratios):
    figure = region_map(ratios[1], "title")
    axes, bar = figure.axes
    np.testing.assert_allclose(axes.images[0].get_array(), 100 * ratios[1])
    assert axes.images[0].get_clim() == (0, 100)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0–499", "500–999"]
    assert axes.get_xlabel() == "training timestep, from clean to noisy" and axes.get_ylabel() == "layer"
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written[1, 2] == f"{100 * ratios[1, 2, 1]:.0f}" and len(written) == 8
    assert bar.get_ylabel() == "kept tokens (%)"


def test_a_region_begins_at_its_first_timestep():
    for regions in (3, 7):
        labels = region_map(np.full((2, regions), 0.5), "").axes[0].get_xticklabels()
        starts = [int(label.get_text().partition("–")[0]) for label in labels]
        assert starts == [next(t for t in range(1000) if t * regions // 1000 == r) for r in range(regions)]


def test_large_maps_have_colours_alone_and_few_ticks():
    axes = region_map(np.full((40, 10), 0.5), "").axes[0]
    assert not axes.texts and len(axes.get_yticks()) <= 14
    assert axes.get_xticklabels()[-1].get_text() == "900–999"
