"""`diffratio plan`, as typed."""

import json
from dataclasses import replace

import pytest
import typer
from diffusers import PixArtTransformer2DModel
from typer.testing import CliRunner

from diffratio import DiffRatioConfig, apply_diffratio, save_diffratio
from diffratio.cli.plan import plan
from diffratio.evaluation.flops import PRESETS
from diffratio.evaluation.results import append
from diffratio.plan import DEVICES
from diffratio.plan import plan as planned

app = typer.Typer()
app.command()(plan)


def command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "400"})


def flat(*arguments):
    result = command(*arguments)
    return result.exit_code, " ".join(result.output.replace("│", " ").split())


def json_of(*arguments):
    result = command(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_the_table_fits_and_says_that_it_is_predicted():
    result = command("--batch", 16, "--kept", 0.5)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 100
    words = " ".join(result.output.split())
    for said in ("28 blocks, B=16 N=1024 D=1152", "predicted for NVIDIA H200 from its datasheet",
                 "not measured", "0-27", "E = 0.", "pays: ", "of the tokens kept"):  # fmt: skip
        assert said in words
    assert "were not measured at these sizes" not in words


def test_json_is_the_plan():
    report = json_of("--kept", 0.7, "--device", "a100", "--text-tokens", 300, "--no-cache-text-kv")
    shape = replace(PRESETS["pixart-xl-512"], text_tokens=300)
    found = planned(shape, 2, 717, DEVICES["a100"], cache_text_kv=False)
    assert report == json.loads(json.dumps(found.to_dict()))


def test_an_adapter_gives_each_layer_its_own_ratio(tmp_path):
    model = PixArtTransformer2DModel(num_attention_heads=2, attention_head_dim=8, num_layers=3, in_channels=4,
                                     sample_size=8, cross_attention_dim=16, caption_channels=16)  # fmt: skip
    model.save_config(tmp_path / "model")
    config = DiffRatioConfig(compression=0.5, overrides={1: [0.0, 0.3]}, num_regions=2)
    save_diffratio(apply_diffratio(model, config), tmp_path / "adapter")
    report = json_of("--model", tmp_path / "model", "--adapter", tmp_path / "adapter")
    assert [layer["kept"] for layer in report["layers"]] == [[8, 8], [16, 12], [8, 8]]
    code, text = flat("--adapter", tmp_path / "adapter", "--model", tmp_path / "model")
    assert code == 0 and "0 0.50 0.50" in text and "1 1.00 0.75" in text
    written = tmp_path / "adapter" / "diffratio_config.json"
    written.write_text(written.read_text().replace('"ceil"', '"floor"'))
    report = json_of("--model", tmp_path / "model", "--adapter", tmp_path / "adapter")
    assert [layer["kept"] for layer in report["layers"]] == [[8, 8], [16, 11], [8, 8]]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (range(5), "5 layers, transformer_blocks.0 to transformer_blocks.4"),
        (range(30), "30 layers, transformer_blocks.0 to transformer_blocks.29"),
        (range(1, 29), "28 layers, transformer_blocks.1 to transformer_blocks.28"),
        ((), "no layer"),
    ],
)
def test_an_adapter_of_another_model_is_refused(tmp_path, numbers, said):
    """A preset has 28 layers: what 5 of another model learned says nothing of it."""
    written = {
        "format": 1,
        "routed_layers": [f"transformer_blocks.{number}" for number in numbers],
        "config": DiffRatioConfig(compression=0.5).to_dict(),
    }
    (tmp_path / "diffratio_config.json").write_text(json.dumps(written))
    code, text = flat("--adapter", tmp_path)
    assert code == 2 and f"--adapter: it routes {said}; the model that is planned has 28" in text


@pytest.fixture
def results(synthetic, tmp_path):
    operators = [row | {"keep": row["kept"]} for row in synthetic.operator_rows(2, 1024)]
    for row in synthetic.peak_rows() + operators:
        append(tmp_path / "gpu.jsonl", synthetic.facts, [row])
    config = {"_class_name": "PixArtTransformer2DModel", "num_attention_heads": 4, "attention_head_dim": 32,
              "num_layers": 5, "sample_size": 64, "cross_attention_dim": 128}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    return ("--results", tmp_path / "gpu.jsonl", "--model", tmp_path / "config.json", "--text-tokens", 16)


def test_measured_times_are_said_to_be_measured(results):
    code, text = flat(*results, "--kept", 0.6)
    assert code == 0 and "measured on Test GPU, bfloat16, 2026-01-02, abc1234" in text
    assert "predicted" not in text and "not measured" not in text
    assert json_of(*results, "--kept", 0.6)["not_measured"] == 0


def test_after_a_block_alone_the_suites_that_are_missing_are_named(synthetic, tmp_path):
    append(tmp_path / "gpu.jsonl", synthetic.facts, [synthetic.block_row()])
    code, text = flat("--results", tmp_path / "gpu.jsonl")
    assert code == 2 and f"--results: {tmp_path / 'gpu.jsonl'}: " in text
    assert "`diffratio bench peak` and `diffratio bench operator` do it" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kept", 0.75), "--kept: 0.75 is not one of 0, 0.1, ... 1"),
        (("--kept", 1.1), "--kept: 1.1 is not one of 0, 0.1, ... 1"),
        (("--kept", 0.7, "--adapter", "."), "--kept: give either --kept or --adapter"),
        (("--device", "tpu"), "--device: 'tpu' is not one of a100, h100, h200"),
        (("--device", "h200", "--results", "x"), "--device: --results says which device"),
        (("--results", "x"), "--results: x is not a file"),
        (("--preset", "unet"), "--preset: 'unet' is not one of"),
        (("--adapter", "nowhere"), "--adapter: directory: no diffratio_config.json"),
    ],
)
def test_bad_options_are_named(arguments, message):
    code, text = flat(*arguments)
    assert code == 2 and message in text


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"no rows\n"])
def test_a_file_that_holds_no_results_is_named(content, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(content)
    code, text = flat("--results", path)
    assert code == 2 and f"--results: {path}: " in text


def test_steps_that_were_measured_at_other_sizes_only_are_said(results):
    said = "steps that were not measured at these sizes: `diffratio bench operator --batch 2 --tokens 1024"
    assert said not in command(*results, "--kept", 0.6).output
    code, text = flat(*results[:2], "--kept", 0.6)  # of PixArt's width
    assert code == 0 and f"100% of the time is of {said} --width 1152 --heads 16 --text 120` does it" in text
