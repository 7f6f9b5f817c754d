import pytest
import torch
from matplotlib.axes import Axes

from diffratio.data import load_dataset
from diffratio.demo.picture import compose_repainted, cost_rows
from diffratio.demo.repainting import Repainted, hole_around


@pytest.fixture
def done() -> Repainted:
    """One pixel differs in the hole, one outside of it."""
    before = torch.full((1, 3, 32, 32), 0.5)
    mask, after = torch.zeros(1, 1, 32, 32, dtype=torch.bool), before.clone()
    mask[..., :8, :8] = True
    after[0, 1, 3, 3] = after[0, 2, 20, 9] = 0.25
    return Repainted(before, mask, after)


def report(outside: int) -> dict:
    way = {"gflop": 2.0, "milliseconds": 300.0}
    half = {"gflop": 1.0, "milliseconds": 150.0}
    costs = [{"hole": 1.0, "dense": way, "sparse": half}, {"hole": 0.25, "dense": half, "sparse": half}]
    edits = [{"prompt": "twins on checks", "hole": 0.0625, "outside_differing": outside}]
    known = {"training_steps": 7, "mean_kept": 0.7, "encoder_milliseconds": 9.0}
    return {"edits": edits, "costs": {"twins, batch 16": costs}, **known}


def test_a_pixel_outside_that_differs_is_counted_and_shown_red(done):
    assert done.differing.nonzero().tolist() == [[0, 20, 9]]
    figure = compose_repainted(report(1), done)
    *_, map_ = (axes for axes in figure.findobj(Axes) if axes.images)
    assert map_.get_title() == "1 pixels outside differ"
    colours = torch.tensor(map_.images[0].get_array())
    strange = (colours != colours[20, 10]).any(-1) & ~done.mask[0, 0]
    assert strange.nonzero().tolist() == [[20, 9]]
    assert "7 steps of training" in figure.get_suptitle()


@pytest.mark.parametrize("side, tokens", [(2, 4), (4, 16), (6, 36)])
def test_a_hole_is_of_whole_tokens_around_the_twin(side, tokens):
    for quarter in load_dataset("twins", split="held_out").masks(range(12)) > 0:
        hole = hole_around(quarter, side)
        cells = hole.view(8, 4, 8, 4).float().mean((1, 3))
        assert cells.unique().tolist() == [0, 1] and cells.sum() == tokens
        inside, small = (quarter, hole[0]) if side >= 4 else (hole[0], quarter)
        assert not (inside & ~small).any()


def test_all_tokens_are_absolute_and_holes_a_part_of_them():
    header, whole, hole = cost_rows(report(0))
    assert whole == ("twins, batch 16: all tokens", "2.00 GFLOP", "300 ms", "50.0%", "50.0%")
    assert hole == ("twins, batch 16: hole 25.0%", "50.0%", "50.0%", "50.0%", "50.0%")
    assert len(header) == 5
