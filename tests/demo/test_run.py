import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from diffratio.adapter_file import RATIOS, WEIGHTS_NAME, read_weights
from diffratio.demo import measure, run
from diffratio.demo.model import ASSETS, load_model
from diffratio.demo.report import kept_rows, note, print_report, table_rows, titles
from diffratio.flops import TransformerShape, kept_tokens, transformer_flops
from diffratio.plots.style import save


@dataclass
class Entry:
    """What record_routing collects, as far as the maps read it."""

    layer: int
    timestep: float
    rows: list[int]

    def kept(self) -> torch.Tensor:
        mask = torch.zeros(4, 64, dtype=torch.bool)
        mask.view(-1)[self.rows] = True
        return mask


def test_kept_maps_count_the_half_of_the_batch_that_has_a_class():
    log = [
        Entry(0, 999.0, list(range(10))),  # tokens of the first sample, which has no class
        Entry(1, 999.0, list(range(3 * 64, 3 * 64 + 8))),  # the first row of pixels of the last sample
        Entry(0, 499.0, [2 * 64, 3 * 64]),  # the first token of both samples with a class
        Entry(1, 499.0, [2 * 64, 3 * 64]),
    ]
    kept, timesteps = run.kept_maps(log, samples=2)
    assert timesteps == [999, 499] and kept.shape == (2, 2, 8, 8)
    assert not kept[0, 0].any()
    assert (kept[0, 1, 0] == 0.5).all() and not kept[0, 1, 1:].any()
    assert kept[1, 0, 0, 0] == 1 and kept[1].sum() == 2


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
        patch.setattr(measure, "_REPEATS", 2)  # nobody reads the times
        return run.run_demo(tmp_path_factory.mktemp("demo"), samples_per_class=1, steps=4, progress=False)


def test_the_demo_writes_a_picture_and_its_report(report):
    picture = Path(report["picture"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    written = json.loads((picture.parent / "demo.json").read_text())
    assert written == report
    assert written["samples"] == 10 and written["steps"] == 4
    assert written["sparse"].keys() == {"accuracy", "v_mse"}


def test_the_report_holds_what_was_learned(report):
    kept = report["kept"]
    ratios, tenths = torch.tensor(kept["ratios"]), torch.tensor(kept["tenths"])
    assert torch.equal(ratios, read_weights(ASSETS / "lt30" / WEIGHTS_NAME)[RATIOS])
    assert kept["mean_ratio"] == pytest.approx(ratios.mean().item())
    assert kept["mean_of_bins"] == pytest.approx(tenths.float().mean().item() / 10)
    assert kept["mean_ratio"] == pytest.approx(1 - report["compression"], abs=0.01)


def test_the_picture_shows_what_the_report_says(report, figures):
    (figure,) = figures
    shown = [text.get_text() for text in figure.findobj(Text)]
    for words in (*titles(report), note(report), *(cell for row in table_rows(report) for cell in row)):
        assert words in shown
    (table,) = (axes for axes in figure.findobj(Axes) if axes.get_xlabel() == "timestep")
    percents = [str(10 * tenths) for row in report["kept"]["tenths"] for tenths in row[::-1]]
    assert [text.get_text() for text in table.texts] == percents


def test_the_sparse_model_computes_less(report):
    digits, full_size = report["costs"]
    shape = TransformerShape.from_model(load_model(ASSETS / "dense")[0], text_tokens=4)
    kept = [[kept_tokens(tenths, 64) for tenths in row] for row in report["kept"]["tenths"]]
    assert digits["sparse"]["gflop"] == pytest.approx(transformer_flops(shape, kept, batch=64).total / 1e9)
    for cost in report["costs"]:
        assert 0.6 < cost["sparse"]["gflop"] / cost["dense"]["gflop"] < 0.8
        assert cost["dense"]["milliseconds"] > 0 and cost["sparse"]["peak_megabytes"] > 0
    assert full_size["sparse"]["peak_megabytes"] < full_size["all_tokens"]["peak_megabytes"]


def test_the_tables_have_a_row_for_every_figure(report, capsys):
    rows = table_rows(report)
    assert all(len(row) == 4 for row in rows)
    assert len(rows) == 4 + 3 * len(report["costs"])
    header, *blocks = kept_rows(report)
    assert header == ("tokens kept", "t = 999–750", "t = 749–500", "t = 499–250", "t = 249–0")
    noisiest = [row[-1] for row in report["kept"]["tenths"]]
    assert [row[1] for row in blocks] == [f"{10 * tenths} %" for tenths in noisiest]
    print_report(report)
    printed = capsys.readouterr().out
    assert "full-size block" in printed and "block 4" in printed


def test_a_count_of_no_samples_is_refused_by_name(tmp_path: Path):
    with pytest.raises(ValueError, match="samples_per_class must be at least 1, got 0"):
        run.run_demo(tmp_path, samples_per_class=0)
