import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffratio.evaluation.quality import SampleSettings
from diffratio.plots import run as module
from diffratio.plots.run import (
    FIGURES,
    RATIOS_ONLY,
    ROUTED,
    Run,
    draw_quality,
    draw_run,
)


def test_a_run_tells_its_ratios_and_models(synthetic, synthetic_runs):
    run = Run(synthetic_runs / "lt")
    assert run.ratios.shape == (3, synthetic.LAYERS, synthetic.REGIONS) and run.steps.tolist() == [1, 2, 3]
    np.testing.assert_allclose(run.ratios[2], 1 - np.array(synthetic.TABLES[3]))
    assert run.target == pytest.approx(0.6) and run.title == "lt: lt, target 60 % kept"
    assert run.models() == [(1, 1), (2, 2), (3, None)] and run.figures() == FIGURES
    assert Run(synthetic_runs / "mod").figures() == ("maps", "scores", "quality", "side-by-side")
    assert Run(synthetic_runs / "dense").figures() == ("quality", "side-by-side")


def test_an_unfinished_run_ends_with_its_last_whole_checkpoint(synthetic_runs, tmp_path: Path):
    folder = shutil.copytree(synthetic_runs / "lt", tmp_path / "lt")
    shutil.rmtree(folder / "final")
    (folder / "checkpoint-3" / "checkpoint.json").unlink()
    assert Run(folder).models() == [(1, 1), (2, 2)]
    for step in (1, 2):
        shutil.rmtree(folder / f"checkpoint-{step}")
    with pytest.raises(ValueError, match="path: the run in .* has no model yet"):
        Run(folder).models()
    (folder / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="path: .* holds no run"):
        Run(folder)


def test_a_finished_run_that_goes_on_has_the_step_of_its_finished_model(synthetic_runs, tmp_path: Path):
    folder = shutil.copytree(synthetic_runs / "lt", tmp_path / "lt")
    info = json.loads((folder / "run.json").read_text())
    info["arguments"]["max_train_steps"] = 9
    (folder / "run.json").write_text(json.dumps(info | {"step": 3, "finished": None}))
    assert Run(folder).models() == [(1, 1), (2, 2), (3, None)]
    shutil.copytree(folder / "checkpoint-3", folder / "checkpoint-6")
    assert Run(folder).models() == [(1, 1), (2, 2), (3, None), (6, 6)]


def test_figures_of_a_run_are_written_as_pictures(synthetic_runs, tmp_path: Path, monkeypatch):
    figures = {}
    real_save = module.save
    monkeypatch.setattr(
        module, "save", lambda figure, path: figures.update({path.stem: figure}) or real_save(figure, path)
    )
    written = draw_run(Run(synthetic_runs / "lt"), tmp_path / "new", FIGURES, progress=False)
    assert [path.stem for path in written] == [*RATIOS_ONLY, *ROUTED]
    for path in written:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert min(pixels.shape[:2]) > 200 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    heat = figures["regions"].axes[0].images[0].get_array()
    np.testing.assert_allclose(heat, [[80, 60], [70, 30]])
    assert "step 3" in figures["regions"].get_suptitle()
    panels = figures["maps"].subfigs
    assert len(panels) == 3
    titles = [axes.get_title() for axes in panels[0].axes if axes.get_title()]
    assert titles == ["sample", "t = 999", "t = 749", "t = 499", "t = 299", "t = 49"]
    points = figures["scores-of-ratios"].axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(points[:, 0], [80, 60, 70, 30])
    assert len(figures["scores"].subfigs) == 4  # the last holds the colour bar
    assert draw_run(Run(synthetic_runs / "dense"), tmp_path, FIGURES, progress=False) == []


def test_quality_is_measured_for_each_model_of_a_run_that_learns(synthetic_runs, tmp_path: Path):
    runs = [Run(synthetic_runs / name) for name in ("lt", "mod", "dense")]
    picture, table = draw_quality(runs, tmp_path, SampleSettings(4, 0, 2, 2.0), progress=False)
    assert np.asarray(Image.open(picture)).std() > 5
    content = json.loads(table.read_text())
    assert content["settings"]["samples"] == 4 and list(content["runs"]) == ["lt", "mod", "dense"]
    kept = {name: [one["mean_kept"] for one in models] for name, models in content["runs"].items()}
    assert [round(x, 3) for x in kept["lt"]] == [0.95, 0.7, 0.6]
    assert [round(x, 3) for x in kept["mod"]] == [0.6] and kept["dense"] == [1.0]
    assert [one["step"] for one in content["runs"]["lt"]] == [1, 2, 3]
    errors = [one["v_mse"] for one in content["runs"]["lt"]]
    assert len(set(errors)) == 3 and all(one["frechet"] > 0 for one in content["runs"]["lt"])
