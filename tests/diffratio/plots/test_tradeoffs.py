import json

import numpy as np
import pytest

from diffratio.plots.tradeoffs import draw_tradeoffs, points, read_reports, tradeoffs


def report(name, error, latency, flops, own="sparse", **more):
    cost = {"dense": {"milliseconds": 20, "gflop": 8}, own: {"milliseconds": latency, "gflop": flops}}
    quality = {"frechet": 10 * error, "v_mse": error}
    alike = {"dataset": "shapes", "device": "cpu", "dtype": "fp32", "batch": 16, "samples": 8, "steps": 4}
    return alike | {"name": name, "quality": quality, "cost": cost} | more


@pytest.fixture
def files(tmp_path):
    dense = {"frechet": 1.0, "v_mse": 0.1}
    reports = {
        "lt": report("lt", 0.2, 14, 6, base=dense, dense={"frechet": 2.0, "v_mse": 0.2}),
        "mod": report("mod", 0.3, 16, 6, base=dense),
        "tome": report("shapes", 0.4, 18, 7, "tome:mlp:0.2", baseline="tome:mlp:0.2", dense=dense),
    }
    for name, one in reports.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(one))
    return [tmp_path / f"{name}.json" for name in reports]


def test_every_system_is_a_point_and_the_base_one_for_all(files):
    found = points(read_reports(files))
    assert [one["name"] for one in found] == ["dense", "lt", "mod", "shapes, tome:mlp:0.2"]
    assert [one["milliseconds"] for one in found] == [1, 0.7, 0.8, 0.9]
    grid = np.array(tradeoffs(found, "all").axes).reshape(2, 2)
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["Fréchet distance", "v-MSE"]
    assert [axes.get_xlabel() for axes in grid[0]] == ["measured latency (% of dense)", "FLOPs (% of dense)"]
    places = [one.get_offsets()[0] for one in grid[1, 0].collections]
    np.testing.assert_allclose(places, [[100, 0.1], [70, 0.2], [80, 0.3], [90, 0.4]])
    np.testing.assert_allclose(grid[0, 1].collections[3].get_offsets()[0], [87.5, 4.0])


def test_weights_of_which_nobody_knows_the_beginning_stand_beside_themselves():
    found = points([report("lazy", 0.2, 14, 6, dense={"v_mse": 0.1}), report("own", 0.3, 20, 8)])
    assert [one["name"] for one in found] == ["lazy, dense", "lazy", "own"]


def test_more_systems_than_colours_differ_in_shape():
    found = [{"name": str(i), "quality": {"v_mse": 1.0}, "milliseconds": 1, "gflop": 1} for i in range(8)]
    drawn = tradeoffs(found, "").axes[0].collections
    looks = {(one.get_facecolor().tobytes(), one.get_paths()[0].vertices.tobytes()) for one in drawn}
    assert len(looks) == 8


def test_the_picture_is_written(files, tmp_path):
    assert draw_tradeoffs(files, tmp_path / "new").read_bytes().startswith(b"\x89PNG")


def test_what_was_not_measured_alike_is_refused(files):
    files[1].write_text(json.dumps(report("mod", 0.3, 16, 6, batch=1)))
    with pytest.raises(ValueError, match="paths: .*mod.json has batch=1, .*lt.json 16: only what"):
        read_reports(files)


def test_files_that_tell_no_quality_are_named(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(ValueError, match="x.json is no report of `diffratio eval --json`"):
        read_reports([path])
    path.write_text("[]")
    with pytest.raises(ValueError, match="x.json is no report"):
        read_reports([path])
    path.write_text(json.dumps(report("a", 1, 1, 1) | {"quality": None, "why_no_quality": "other images"}))
    with pytest.raises(ValueError, match="x.json has no quality: other images"):
        read_reports([path])
    one = {"name": "a", "quality": {"accuracy": 1}, "milliseconds": 1, "gflop": 1}
    with pytest.raises(ValueError, match="no figure of quality in common"):
        tradeoffs([one], "")
