"""Figures of runs that repaint: what is recorded lies in the holes, whatever a system is shown."""

import json
from pathlib import Path

import pytest
import torch

from diffratio import DiffRatioConfig, apply_diffratio
from diffratio.evaluation.inpainting import judge_of
from diffratio.evaluation.quality import SampleSettings
from diffratio.evaluation.target import load_target
from diffratio.inpainting.masks import token_mask
from diffratio.inpainting.systems import system_of
from diffratio.plots import run as module
from diffratio.plots import side_by_side as rows_module
from diffratio.plots.recorded import record_samples
from diffratio.plots.run import FIGURES, ROUTED, Run, draw_run, measure_runs
from diffratio.plots.side_by_side import GIVEN, draw_side_by_side
from diffratio.plots.style import new_figure
from diffratio.routing.find import routed_blocks
from diffratio.train.model import write_model

FEW = SampleSettings(3, 0, 2, 2.0)


@pytest.fixture(scope="module")
def painters(synthetic, tmp_path_factory) -> Path:
    """Folder with a run of each system, of models that were never trained, in ten regions."""
    folder = tmp_path_factory.mktemp("painters")
    for system in ("lazy", "crop"):
        run = synthetic.make_run(folder / system, "mod")
        model = system_of(system).from_pixart(synthetic.make_model())
        apply_diffratio(model, DiffRatioConfig(0.5, num_regions=10))
        for layer, block in enumerate(routed_blocks(model)):
            block.diffratio.router_weight.data.normal_(generator=torch.Generator().manual_seed(layer))
        write_model(model, run / "final")
        info = json.loads((run / "run.json").read_text()) | {"latents": False}
        info["arguments"] |= {"task": "inpaint", "system": system, "num_regions": 10}
        (run / "run.json").write_text(json.dumps(info))
    return folder


def test_what_a_lazy_model_keeps_lies_in_the_holes(painters):
    target = load_target(painters / "lazy")
    judge = judge_of(target, FEW, progress=False)
    found = record_samples(judge, target, "")
    hole = token_mask(judge.mask, 1)
    assert found.hole.equal(hole) and len(set(hole.sum(1).tolist())) > 1
    assert found.noisy.shape == (3, 2, 1, 8, 8) and found.kept.shape == (3, 2, 2, 64)
    inside = hole[:, None, None].expand_as(found.kept)
    assert not found.kept[~inside].any() and found.scores[~inside].isnan().all()
    kept = found.kept.sum(-1)
    assert kept.equal((hole.sum(1) + 1).div(2, rounding_mode="floor")[:, None, None].expand_as(kept))
    scores = found.scores.nan_to_num(0)
    worst = scores.masked_fill(~found.kept, 1).amin(-1)
    assert (worst >= scores.masked_fill(found.kept, 0).amax(-1)).all()
    assert found.mean_scores(10).isfinite().sum() == 4  # two layers, two timesteps
    changed = found.images != judge.held_out.batch(range(3))["pixel_values"]
    assert changed.any() and not changed[~judge.mask.expand_as(changed)].any()


def test_what_a_crop_keeps_is_a_grid_on_the_crop(painters):
    target = load_target(painters / "crop")
    found = record_samples(judge_of(target, FEW, progress=False), target, "")
    assert found.hole is None and found.images.shape == (3, 1, 4, 4) == found.noisy[:, 0].shape
    assert found.kept.shape == (3, 2, 2, 16) and (found.kept.sum(-1) == 8).all()


def test_a_run_that_repaints_has_all_figures(painters, tmp_path, monkeypatch):
    for name, value in {"_RECORDED": 2, "_MAP_SAMPLES": 1, "_MAP_COLUMNS": 2}.items():
        monkeypatch.setattr(module, name, value)
    written = draw_run(Run(painters / "lazy"), tmp_path, FIGURES, progress=False)
    assert [path.stem for path in written] == list(ROUTED[:2])
    measured = measure_runs([Run(painters / name) for name in ("lazy", "crop")], FEW, progress=False)
    for [one] in measured.values():
        assert one["outside_differing"] == 0 and one["hole_error"] > 0 and one["mean_kept"] == 0.5


def test_systems_paint_the_same_holes_side_by_side(painters, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(rows_module, "side_by_side", lambda *what: drawn.append(what) or new_figure(2, 2, ""))
    paths = [painters / "lazy", painters / "crop"]
    draw_side_by_side(paths, tmp_path, FEW, progress=False)
    [(rows, captions, _)] = drawn
    judge = judge_of(load_target(paths[0]), FEW, progress=False)
    assert list(rows) == [GIVEN, "lazy", "crop"] and len(captions) == 3
    assert rows[GIVEN].equal(judge.given) and not rows["lazy"].equal(rows["crop"])
    with pytest.raises(ValueError, match="prompt: is not for runs that repaint"):
        draw_side_by_side(paths, tmp_path, FEW, ["a 7"], progress=False)
    with pytest.raises(ValueError, match="side-by-side: lazy is given other images or holes than the first"):
        draw_side_by_side([Path("digits"), paths[0]], tmp_path, FEW, progress=False)


def test_a_run_on_latents_is_shown_by_its_own_command(painters):
    target = load_target(painters / "lazy")
    target.run["latents"] = True
    assert "it has 3 channels instead of 1" in judge_of(target, FEW, progress=False).why_not(target)
