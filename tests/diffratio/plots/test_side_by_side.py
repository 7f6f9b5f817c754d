from pathlib import Path

import pytest

from diffratio.evaluation.quality import Judge, SampleSettings
from diffratio.evaluation.target import load_target
from diffratio.plots import side_by_side as module
from diffratio.plots.side_by_side import draw_side_by_side
from diffratio.plots.style import new_figure


def test_runs_and_models_draw_the_same_prompts_from_the_same_noise(synthetic_runs, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(module, "side_by_side", lambda *what: drawn.append(what) or new_figure(2, 2, ""))
    paths, settings = [synthetic_runs / "lt", Path("digits")], SampleSettings(2, 0, 2, 2.0)
    path = draw_side_by_side(paths, tmp_path, settings, ["a 7", "a 1", "a 0"], progress=False)
    [(rows, captions, title)] = drawn
    assert path.is_file() and list(rows) == ["lt", "digits"] and captions == ["a 7", "a 1", "a 0"]
    judge = Judge("digits", settings, progress=False)
    assert rows["digits"].equal(judge.samples(load_target("digits"), captions=captions))
    assert not rows["lt"].equal(rows["digits"]) and "2 steps, guidance 2" in title
    draw_side_by_side(paths[1:], tmp_path, settings, baselines=["tome:mlp:0.3"], progress=False)
    rows, captions, _ = drawn[1]
    assert list(rows) == ["digits", "digits, tome:mlp:0.3"] and captions == judge.held_out.captions(range(2))
    assert not rows["digits"].equal(rows["digits, tome:mlp:0.3"])
    with pytest.raises(ValueError, match="side-by-side: shapes: the model does not fit 'digits'"):
        draw_side_by_side([*paths, Path("shapes")], tmp_path, settings, progress=False)
    with pytest.raises(ValueError, match="two of them have the name 'digits'"):
        draw_side_by_side([paths[1]] * 2, tmp_path, settings, progress=False)
