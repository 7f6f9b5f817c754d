"""`diffratio flops` and `diffratio plan` of families beside PixArt and DiT."""

import json
import re
from statistics import fmean

import pytest
import typer
from diffusers import FluxTransformer2DModel
from typer.testing import CliRunner

from diffratio import DiffRatioConfig, apply_diffratio, save_diffratio
from diffratio.cli.flops import flops
from diffratio.cli.plan import plan
from diffratio.evaluation.flops.counted import count_preset
from diffratio.evaluation.models import Preset, Size
from diffratio.evaluation.results import append
from diffratio.plan import DEVICES, Measured
from diffratio.plan.counted import plan_counted
from tests.diffratio.families.cases.flux import tiny_options

H200 = DEVICES["h200"]
CONFIG = tiny_options() | {"pooled_projection_dim": 6, "guidance_embeds": True}
PRESET = Preset("FluxTransformer2DModel", Size(16, 16, 5), CONFIG)
SIZES = ("--height", 16, "--text-tokens", 5)
APPS = {}
for command in (flops, plan):
    APPS[command.__name__] = typer.Typer()
    APPS[command.__name__].command()(command)


def run(command, *arguments):
    result = CliRunner().invoke(APPS[command], [str(one) for one in arguments], env={"COLUMNS": "200"})
    return result.exit_code, " ".join(re.sub("[│┃]", " ", result.output).split())


def json_of(command, *arguments):
    code, text = run(command, *arguments, "--json")
    assert code == 0, text
    return json.loads(text)


@pytest.fixture
def folder(tmp_path):
    FluxTransformer2DModel(**CONFIG).save_config(tmp_path / "transformer")
    return tmp_path


@pytest.fixture(scope="module")
def counted():
    return count_preset(PRESET.resized(batch=2))


def test_flops_of_a_folder_are_those_that_were_counted(folder, counted):
    report = json_of("flops", "--model", folder, *SIZES, "--batch", 2, "--compression", 0.5)
    assert report["true"]["total"] == counted.flops(5)
    assert report["true"]["saving"] == pytest.approx(1 - counted.flops(5) / counted.flops())
    assert report["size"] == {"height": 16, "width": 16, "text": 5, "frames": 1, "batch": 2}
    assert (report["model"], report["tokens"]) == ("FluxTransformer2DModel", 64)
    assert report["layers"] == list(counted.layers) and report["kept_tenths"] == 5
    dense = json_of("flops", "--model", folder, *SIZES, "--batch", 2)["true"]
    assert (dense["method"], dense["total"], dense["saving"]) == ("dense", counted.flops(), 0)


def test_flops_of_a_table_are_means_of_its_regions(folder, counted):
    table = [[10, 3], [7, 3], [0, 0], [5, 10]]
    (folder / "table.json").write_text(json.dumps(table))
    report = json_of("flops", "--model", folder, *SIZES, "--batch", 2, "--kept-table", folder / "table.json")
    assert report["true"]["total"] == pytest.approx(counted.flops(table), abs=len(report["true"]["parts"]))


def test_flops_are_shown_beside_the_dense_ones(folder, counted):
    code, text = run("flops", "--model", folder, *SIZES, "--compression", 0.5)
    assert code == 0
    for said in ("FluxTransformer2DModel: 4 routed blocks, 64 tokens, 5 text, batch 1", "dense GFLOP",
                 "FluxSingleTransformerBlock, attention", "FluxTransformerBlock, router"):  # fmt: skip
        assert said in text


def test_a_plan_adds_up_and_pays(counted):
    found = plan_counted(counted, 2, [[5]] * 4, H200)
    assert [layer.flops for layer in found.layers] == [block.kept[5].flops for block in counted.blocks]
    assert found.dense_flops == fmean(block.dense.flops for block in counted.blocks)
    of_all = sum(layer.flops for layer in found.layers) / 4 / found.dense_flops
    assert found.flop_ratio == pytest.approx(of_all) and found.layers[0].kept == (32,)
    assert found.not_measured == 1 and found.title == H200.title
    assert found.memory.weights == counted.weights
    assert found.memory.routed < found.memory.dense == counted.peak()


def test_the_dense_block_is_the_same_kernels_without_a_router(counted):
    found = plan_counted(counted, 2, [[10]] * 4, H200)
    assert 1 < found.latency_ratio < 1.5
    [router] = (work for work in counted.blocks[0].kept[10].work if work.operator == "route")
    layer = found.layers[0]
    assert layer.seconds * (1 - 1 / layer.of_dense) == pytest.approx(H200.roof(*router))
    both = plan_counted(counted, 2, [[10, 5]] * 4, H200)
    half = plan_counted(counted, 2, [[5]] * 4, H200)
    assert both.latency_ratio == pytest.approx((found.latency_ratio + half.latency_ratio) / 2)


def test_measured_peaks_are_taken(counted, synthetic):
    measured = Measured(synthetic.peak_rows())
    found = plan_counted(counted, 2, [[5]] * 4, measured)
    assert found.title == "predicted for Test GPU from its peaks: not measured"
    assert found.layers == plan_counted(counted, 2, [[5]] * 4, measured.peaks).layers


def test_plan_prints_memory_and_takes_an_adapter(folder, counted, synthetic):
    model = FluxTransformer2DModel(**CONFIG)
    config = DiffRatioConfig(0.5, overrides={1: [0.0, 0.3]}, num_regions=2)
    save_diffratio(apply_diffratio(model, config), folder / "adapter")
    report = json_of("plan", "--model", folder, *SIZES, "--adapter", folder / "adapter")
    assert report == json.loads(json.dumps(plan_counted(counted, 2, config.kept_tenths(4), H200).to_dict()))
    assert [layer["kept"] for layer in report["layers"]] == [[32, 32], [64, 45], [32, 32], [32, 32]]
    written = folder / "adapter" / "diffratio_config.json"
    written.write_text(written.read_text().replace('"ceil"', '"floor"'))
    code, text = run("plan", "--model", folder, *SIZES, "--adapter", folder / "adapter")
    assert code == 2 and "--adapter: its rounding='floor' is counted for PixArt and DiT alone" in text
    for row in synthetic.peak_rows():
        append(folder / "gpu.jsonl", synthetic.facts, [row])
    code, text = run("plan", "--model", folder, *SIZES, "--kept", 0.3, "--results", folder / "gpu.jsonl")
    assert code == 0
    for said in ("4 blocks, B=2 N=64 of a FluxTransformer2DModel", "predicted for Test GPU from its peaks",
                 "0-1 0.31", "2-3 0.31", "weights 0.00 GiB; beside them a block takes"):  # fmt: skip
        assert said in text


def test_a_preset_takes_other_sizes():
    report = json_of("flops", "--preset", "wan-1.3b-480p", "--height", 8, "--frames", 2, "--text-tokens", 16)
    assert report["size"] == {"height": 8, "width": 8, "text": 16, "frames": 2, "batch": 1}
    assert report["tokens"] == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("flops", "--preset", "flux.1-dev-1024", "--method", "tome"),
            "--method: 'tome' is counted for PixArt",
        ),
        (("flops", "--frames", 3), "--frames: the model is of images"),
        (("flops", "--preset", "flux.1-dev-1024", "--height", 0), "height: 0 must be a positive integer"),
        (
            ("flops", "--preset", "flux.1-dev-1024", "--height", 15),
            "height: 15 is not a multiple of the patch",
        ),
        (
            ("plan", "--preset", "flux.1-dev-1024", "--no-cache-text-kv"),
            "--no-cache-text-kv: of PixArt alone",
        ),
    ],
)
def test_bad_options_are_named(arguments, message):
    code, text = run(*arguments)
    assert code == 2 and message in text


def test_a_table_and_an_adapter_of_another_model_are_refused(folder):
    (folder / "table.json").write_text("[[5], [5]]")
    code, text = run("flops", "--model", folder, *SIZES, "--kept-table", folder / "table.json")
    assert code == 2 and "--kept-table: 4 layers need a row each, all of one length" in text
    (folder / "diffratio_config.json").write_text(json.dumps({
        "format": 1, "routed_layers": ["transformer_blocks.0"], "config": DiffRatioConfig(0.5).to_dict(),
    }))  # fmt: skip
    code, text = run("plan", "--model", folder, *SIZES, "--adapter", folder)
    assert code == 2 and "--adapter: it routes 1 layers, transformer_blocks.0 to transformer_blocks.0" in text


def test_a_model_whose_inputs_are_not_known_is_named(folder):
    (folder / "config.json").write_text('{"_class_name": "AllegroTransformer3DModel"}')
    code, text = run("flops", "--model", folder / "config.json")
    assert code == 2 and "--model: 'AllegroTransformer3DModel' is not one of DiTTransformer2DModel" in text
