import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from diffratio.demo.report import print_report, table_rows
from diffratio.demo.run import kept_maps, run_demo


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
    kept, timesteps = kept_maps(log, samples=2)
    assert timesteps == [999, 499] and kept.shape == (2, 2, 8, 8)
    assert not kept[0, 0].any()
    assert (kept[0, 1, 0] == 0.5).all() and not kept[0, 1, 1:].any()
    assert kept[1, 0, 0, 0] == 1 and kept[1].sum() == 2


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    return run_demo(tmp_path_factory.mktemp("demo"), samples_per_class=1, steps=4, progress=False)


def test_the_demo_writes_a_picture_and_its_report(report):
    picture = Path(report["picture"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    written = json.loads((picture.parent / "demo.json").read_text())
    assert written["samples"] == 10 and written["steps"] == 4
    assert written["sparse"].keys() == {"accuracy", "held_out_loss"}


def test_the_sparse_model_computes_less(report):
    for cost in report["costs"]:
        assert 0.6 < cost["sparse"]["gflop"] / cost["dense"]["gflop"] < 0.8
        assert cost["dense"]["milliseconds"] > 0 and cost["sparse"]["peak_megabytes"] > 0
    full_size = report["costs"][-1]
    assert full_size["sparse"]["peak_megabytes"] < full_size["all_tokens"]["peak_megabytes"]


def test_the_table_has_a_row_for_every_figure(report, capsys):
    rows = table_rows(report)
    assert all(len(row) == 4 for row in rows)
    assert len(rows) == 3 + 3 * len(report["costs"])
    print_report(report)
    assert "full-size block" in capsys.readouterr().out


def test_a_count_of_no_samples_is_refused_by_name(tmp_path: Path):
    with pytest.raises(ValueError, match="samples_per_class must be at least 1, got 0"):
        run_demo(tmp_path, samples_per_class=0)
