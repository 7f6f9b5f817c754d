import json
from pathlib import Path

import pytest
import torch
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.table import Table
from matplotlib.text import Text
from typer.testing import CliRunner

from diffratio.cli import demo as command
from diffratio.demo import repainting, run
from diffratio.demo.picture import cost_rows, encoder_line, repainted_title, table_rows, title
from diffratio.diffusion.sampling import CHUNK
from diffratio.evaluation.flops import TransformerShape, transformer_flops
from diffratio.evaluation.quality import Judge, SampleSettings
from diffratio.evaluation.target import load_target
from diffratio.plots.style import save
from diffratio.toy import PRETRAINED, load_pixart
from diffratio_kernels import kept_tokens

SETTINGS = SampleSettings(samples=10, steps=4)


@pytest.fixture(scope="module")
def figures() -> list[Figure]:
    """What the demo has drawn."""
    return []


@pytest.fixture(scope="module")
def report(tmp_path_factory, figures) -> dict:
    def save_and_keep(figure: Figure, path: Path) -> Path:
        figures.append(figure)
        return save(figure, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "save", save_and_keep)
        patch.setattr(run, "_REPEATS", 2)  # nobody reads the times
        patch.setattr(repainting, "_ROUNDS", 1)
        return run.run_demo(tmp_path_factory.mktemp("demo"), SETTINGS, progress=False)


def test_the_demo_writes_a_picture_and_its_report(report):
    picture = Path(report["picture"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    written = json.loads((picture.parent / "demo.json").read_text())
    assert written == report
    assert written["samples"] == 10 and written["steps"] == 4


def test_the_figures_are_those_of_the_judge(report):
    _, figures = Judge("digits", SETTINGS, progress=False)(load_target("digits"))
    assert report["dense"] == figures
    assert report["sparse"].keys() == figures.keys() and report["sparse"]["v_mse"] > figures["v_mse"]


def test_the_report_holds_what_was_learned(report):
    tenths = torch.tensor(report["kept_tenths"])
    assert tenths.shape == (5, 4)
    assert report["mean_kept"] == pytest.approx(tenths.float().mean().item() / 10)
    assert report["mean_kept"] == pytest.approx(0.7, abs=0.01)


def test_the_picture_shows_what_the_report_says(report, figures):
    figure, _ = figures
    (table,) = figure.findobj(Table)
    shown = [cell.get_text().get_text() for cell in table.get_celld().values()]
    shown += [text.get_text() for text in figure.findobj(Text)]
    for words in (title(report), *(cell for row in table_rows(report) for cell in row)):
        assert words in shown
    (ratios,) = (axes for axes in figure.findobj(Axes) if axes.get_xlabel())
    percents = [str(10 * tenths) for row in report["kept_tenths"] for tenths in row]
    assert [text.get_text() for text in ratios.texts] == percents
    columns = [axes.get_title() for axes in figure.findobj(Axes) if axes.get_title().startswith("t = ")]
    assert columns == [f"t = {timestep}" for timestep in (249, 499, 749, 999)]


def test_the_sparse_model_computes_less(report):
    digits, full_size = report["costs"].values()
    shape = TransformerShape.from_model(load_pixart(PRETRAINED["digits"]), text_tokens=4)
    kept = [[kept_tokens(tenths, 64) for tenths in row] for row in report["kept_tenths"]]
    assert digits["sparse"]["gflop"] == pytest.approx(transformer_flops(shape, kept, batch=64).total / 1e9)
    for cost in (digits, full_size):
        assert 0.6 < cost["sparse"]["gflop"] / cost["dense"]["gflop"] < 0.8
        assert cost["dense"]["milliseconds"] > 0 and cost["sparse"]["peak_megabytes"] > 0
    assert full_size["sparse"]["peak_megabytes"] < full_size["all_tokens"]["peak_megabytes"]


def test_holes_are_repainted_and_cost_what_they_are_large(report):
    painted = report["repainting"]
    assert Path(painted["picture"]).read_bytes().startswith(b"\x89PNG")
    assert [(edit["hole"], edit["outside_differing"]) for edit in painted["edits"]] == [
        (1 / 16, 0),
        (1 / 4, 0),
        (9 / 16, 0),
    ]
    for costs in painted["costs"].values():
        assert [cost["hole"] for cost in costs] == [1, 9 / 16, 1 / 4, 1 / 16]
        for cost in costs:
            part = cost["dense"]["gflop"] / costs[0]["dense"]["gflop"]
            assert 0.7 * cost["hole"] < part < cost["hole"] + 0.06
            assert 0.6 < cost["sparse"]["gflop"] / cost["dense"]["gflop"] < 1
            assert cost["dense"]["milliseconds"] > 0 and cost["sparse"]["milliseconds"] > 0
    assert painted["encoder_milliseconds"] > 0 and painted["training_steps"] > 0


def test_the_second_picture_shows_what_the_report_says(report, figures):
    _, figure = figures
    painted = report["repainting"]
    (table,) = figure.findobj(Table)
    shown = [cell.get_text().get_text() for cell in table.get_celld().values()]
    shown += [text.get_text() for text in figure.findobj(Text)]
    for words in (
        repainted_title(painted),
        encoder_line(painted),
        *(c for row in cost_rows(painted) for c in row),
    ):
        assert words in shown
    assert shown.count("0 pixels outside differ") == 3
    for edit in painted["edits"]:
        assert edit["prompt"] in shown and f"hole: {edit['hole']:.1%} of the tokens" in shown


def test_the_command_prints_the_report_in_80_columns(report, monkeypatch, tmp_path: Path):
    asked = []
    monkeypatch.setattr(run, "run_demo", lambda out, settings, progress: asked.append(settings) or report)
    app = typer.Typer()
    app.command()(command.demo)
    result = CliRunner().invoke(app, ["--out", str(tmp_path), "--seed", "3"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert asked == [SampleSettings(200, seed=3)]
    for row in (*table_rows(report), *cost_rows(report["repainting"])):
        assert any(all(cell in line for cell in row) for line in result.output.splitlines()), row
    assert "tokens kept, learned: 70.0% on average" in result.output and "t 750 to 999" in result.output
    assert CHUNK < 200  # maps are drawn from more than one chunk
