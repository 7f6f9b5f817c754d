"""The paper's figures are in one file, hold together, and stand beside the run that they are of alone."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest

from diffratio.cli.eval import print_report
from diffratio.diffusion.pipelines.pixart import PixArt, PixArtSigma
from diffratio.evaluation.evaluate import PUBLISHED_MODEL, published_row
from diffratio.evaluation.published import PAPER, of_dense, published, published_rows

TABLE_1 = ("t2i", "pixart-sigma")


def test_rows_hold_what_the_prose_says_of_them():
    """Sections 4.2, 4.3 and appendix H, whose differences the tables must give."""

    def less(method, other, metric, task=TABLE_1, ratio=0.2):
        one, two = (published(*task, name, ratio).figures[metric] for name in (method, other))
        return round(two - one, 3)

    assert less("lt", "atedm", "fid") == 241.11 and less("lt", "tome", "fid") == 335.23
    assert round(published(*TABLE_1, "tome", 0.1).figures["fid"] - 10.68, 2) == 57.83
    assert less("l", "mod", "fid") == 10.5 and less("lt", "mod", "fid") == 12.1
    lazy = ("inpaint", "lazy")
    assert less("tome", "diffratio", "hps", lazy, 0.3) == 2.181
    assert less("mod", "diffratio", "hps", lazy, 0.3) == 0.263
    saved = {key: 1 - part for key, part in of_dense(published(*TABLE_1, "lt", 0.2), 128).items()}
    assert saved == pytest.approx({"milliseconds": 0.2068, "peak_megabytes": 0.0829}, abs=5e-5)
    assert len(published_rows()) == 14 and {row.table for row in published_rows()} == {"Table 1", "Table 4"}


def test_a_row_is_found_only_where_system_ratio_and_task_agree():
    assert published(*TABLE_1, "mod", 0.2).figures["16"]["gflop"] == 13949.3
    assert published(*TABLE_1, "dense", 0.3).name == "PixArt-Sigma, fine-tuned"
    for wanted in (("mod", 0.3), ("mod", 0.21), ("diffratio", 0.2)):
        assert published(*TABLE_1, *wanted) is None
    assert published("t2i", "pixart-alpha", "mod", 0.2) is None
    assert of_dense(published(*TABLE_1, "mod", 0.2), 17) == {}
    assert of_dense(published("inpaint", "lazy", "mod", 0.3), 16) == {}


def like(family=PixArtSigma, method="lt", compression=0.2, side=512, baseline=None, system=None, **sizes):
    """What `published_row` looks at of a target; with a system one that repaints in latents."""
    config = SimpleNamespace(sample_size=64, patch_size=2)
    known = family(config, {"vae": ["diffusers", "AutoencoderKL"]})
    return SimpleNamespace(
        run={"arguments": {"method": method}},
        baseline=baseline,
        mean_kept=1 - compression,
        pipeline=SimpleNamespace(family=known),
        options={"resolution": side},
        model=SimpleNamespace(config=PUBLISHED_MODEL | {"sample_size": side // 8} | sizes),
        repaints=system is not None,
        in_latents=True,
        system=SimpleNamespace(name=system),
    )


def test_a_run_is_beside_the_paper_if_it_is_of_the_papers_model():
    assert published_row(like()).figures["fid"] == 10.68
    assert published_row(like(compression=0.2012)).figures["fid"] == 10.68
    assert published_row(like(method="dense", compression=0.0)).figures["fid"] == 11.93
    others = {"compression": 0.13}, {"num_layers": 6}, {"sample_size": 128}, {"side": 256, "sample_size": 64}
    for other in (like(PixArt), *(like(**one) for one in others)):
        assert published_row(other) is None
    edits = {"side": 1024, "compression": 0.3, "system": "lazy"}
    assert published_row(like(**edits)).figures == {"hps": 20.368}
    assert published_row(like(**edits | {"method": "mod"})).figures == {"hps": 20.105}
    assert published_row(like(**edits | {"compression": 0.2})) is None
    dense = {"side": 1024, "compression": 0.0, "method": "dense"}
    assert published_row(like(**dense, system="crop")).figures == {"hps": 19.466}
    assert published_row(like(**dense | {"side": 512}, system="crop")) is None
    alone = like()
    alone.run = None
    assert published_row(alone) is None
    rows = {name: published_row(like(baseline=name)) for name in ("tome:mlp:0.1", "atedm:0.2")}
    assert [row.figures["fid"] for row in rows.values()] == [68.51, 251.79]
    for other in ("tome:attn:0.2", "tome:mlp:0.3", "atedm:0.2:residual", "mod:0.2"):
        assert published_row(like(baseline=other)) is None


def report(row, **quality):
    """As much of a report as is printed: ours are 1, 2 and 3 times something."""
    layers = {"milliseconds": [1.0, 3.0], "peak_megabytes": [4.0, 4.0]}
    one = {"gflop": 1.0, "milliseconds": 2.0, "peak_megabytes": 3.0, "layers": layers}
    about = {"name": "lt", "samples": 10, "steps": 20, "guidance": 4.5, "batch": 16, "dtype": "float32"}
    model = {"device": "cuda", "mean_kept": 0.8, "untrained_routers": [], "layers_by": "a watch"}
    model |= {"baseline": None, "variance": None}
    judged = {"quality": {"fid_reference": 7} | quality, "dense": quality, "real": {}}
    paper = {"published": row and asdict(row), "published_of_dense": of_dense(row, 16) if row else {}}
    return about | model | judged | paper | {"cost": dict.fromkeys(("dense", "all_tokens", "sparse"), one)}


def test_it_is_printed_beside_ours_where_both_have_the_figure(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    row = published(*TABLE_1, "lt", 0.2)
    print_report(report(row, fid=99.0, noise_mse=0.5, noise_mse_by_quartile=[0.5] * 4))
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines()]
    rows = [(line[1].strip(), line[-2].strip()) for line in lines if len(line) > 3]
    assert ("FID", "10.68") in rows and ("noise-MSE", "") in rows
    # Of the forward, which samplings consist of, and of the block, the mean over layers.
    forward, block = rows[-5:-2], rows[-2:]
    assert forward == [("computation", ""), ("latency", "79.7%"), ("peak memory", "")]
    assert block == [("latency", ""), ("peak memory", "92.5%")]
    print_report(report(row, noise_mse=0.5, noise_mse_by_quartile=[0.5] * 4))
    assert "10.68" not in capsys.readouterr().out
    print_report(report(None, fid=99.0))
    assert "published" not in capsys.readouterr().out


def test_nothing_else_in_the_package_holds_them():
    """The FLOPs of `diffratio flops --paper` come from the file, too."""
    for path in PAPER.parents[2].rglob("*.py"):
        assert "13949.3" not in path.read_text(), path
