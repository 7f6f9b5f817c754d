import numpy as np
import pytest

from diffratio.plots.quality import quality_curves


def entry(step, kept, value, **more):
    return {"step": step, "mean_kept": kept, "frechet": value, "v_mse": value / 10, **more}


RUNS = {
    "lt": [entry(100, 0.9, 2.0), entry(200, 0.7, 3.0)],
    "mod": [entry(200, 0.7, 4.0, accuracy_joint=0.5)],
}


def test_there_is_a_line_for_each_run_in_each_panel():
    figure = quality_curves(RUNS, "quality")
    # Accuracy is left out: one model lacks it.
    assert [axes.get_ylabel() for axes in figure.axes] == ["Fréchet distance", "v-MSE"]
    for axes, factor in zip(figure.axes, (1, 0.1), strict=True):
        lt, mod = axes.lines
        np.testing.assert_allclose(lt.get_xdata(), [90, 70])
        np.testing.assert_allclose(lt.get_ydata(), np.array([2.0, 3.0]) * factor)
        np.testing.assert_allclose(mod.get_ydata(), [4.0 * factor])
        assert lt.get_color() != mod.get_color()
        assert [text.get_text() for text in axes.texts] == ["100", "200", "200"]
        assert axes.get_xlabel() == "kept tokens (%)" and axes.xaxis_inverted()
    assert [text.get_text() for text in figure.axes[-1].get_legend().get_texts()] == ["lt", "mod"]


@pytest.mark.parametrize("kept", [1.0, 0.7, 0.05])
def test_one_point_stands_on_an_axis_of_round_figures(kept):
    axes = quality_curves({"lt": [entry(300, kept, 2.0)]}, "").axes[0]
    left, right = axes.get_xlim()
    assert right < 100 * kept < left <= 102 and right >= -2
    assert all(tick % 5 == 0 for tick in axes.get_xticks())


def test_accuracy_is_drawn_in_percent():
    figure = quality_curves({"lt": [entry(1, 1.0, 1.0, accuracy_joint=0.25)]}, "")
    assert figure.axes[1].get_ylabel() == "all attributes right (%)"
    assert figure.axes[1].lines[0].get_ydata().tolist() == [25]


def test_a_run_without_models_is_refused():
    with pytest.raises(ValueError, match="runs must hold at least one model each"):
        quality_curves({"lt": []}, "")
