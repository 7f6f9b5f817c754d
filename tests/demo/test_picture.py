import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from diffratio.demo.picture import by_class, compose, table_rows


def test_each_class_has_its_first_ten_samples():
    labels = torch.arange(30) % 3
    images = labels.view(30, 1, 1, 1).expand(30, 1, 8, 8)
    rows = by_class(images[:-3], labels[:-3])
    assert [len(row) for row in rows] == [9, 9, 9, *[0] * 7]
    assert all((row == digit).all() for digit, row in enumerate(rows))
    assert len(by_class(torch.zeros(20, 1, 8, 8), torch.zeros(20))[0]) == 10


def report() -> dict:
    cost = {"gflop": 1.0, "milliseconds": 2.0, "peak_megabytes": 3.0}
    return {
        "samples": 20,
        "steps": 4,
        "real": {"accuracy_joint": 0.99},
        "dense": {"accuracy_joint": 0.98, "v_mse": 0.2},
        "sparse": {"accuracy_joint": 0.97, "v_mse": 0.3},
        "kept_tenths": [[6, 10, 5], [8, 9, 7]],
        "mean_kept": 0.75,
        "costs": {"it": {"dense": cost, "all_tokens": cost, "sparse": cost | {"milliseconds": 1234.5}}},
    }


def test_learned_ratios_run_from_clean_to_noisy_and_stand_beside_the_maps():
    samples, shares = by_class(torch.zeros(20, 1, 8, 8), torch.arange(20) % 10), torch.rand(3, 2, 64)
    figure = compose(report(), [samples] * 2, shares, [1, 500, 999])
    (axes,) = (axes for axes in figure.findobj(Axes) if axes.get_xlabel())
    assert [text.get_text() for text in axes.texts] == ["60", "100", "50", "80", "90", "70"]
    assert axes.get_xlabel() == "training timestep, from clean to noisy"
    maps = [axes for axes in figure.findobj(Axes) if axes.images][3:9]
    assert [axes.get_title() for axes in maps[:3]] == ["t = 1", "t = 500", "t = 999"]
    for shown, wanted in zip(maps, shares.transpose(0, 1).flatten(0, 1), strict=True):
        np.testing.assert_array_equal(shown.images[0].get_array(), wanted.view(8, 8).numpy())


def test_maps_that_do_not_match_are_refused():
    samples = by_class(torch.zeros(20, 1, 8, 8), torch.arange(20) % 10)
    with pytest.raises(ValueError, match="shares has 3 timesteps but timesteps lists 1"):
        compose(report(), [samples] * 2, torch.rand(3, 2, 64), [1])


def test_the_table_has_a_row_for_every_figure():
    rows = table_rows(report())
    assert all(len(row) == 5 for row in rows) and len(rows) == 4 + 3
    assert rows[1] == ("recognised (real: 99.0%)", "98.0%", "", "97.0%", "")
    assert rows[2] == ("v-MSE on held-out digits", "0.2000", "", "0.3000", "150.0%")
    assert rows[5] == ("it: latency", "2.00 ms", "2.00 ms", "1234 ms", "61725.0%")
