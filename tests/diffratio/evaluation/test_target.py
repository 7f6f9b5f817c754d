import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from diffratio import DiffRatioConfig
from diffratio.evaluation.target import load_target
from diffratio.routing.adapter import CONFIG_NAME, WEIGHTS_NAME
from diffratio.toy import PRETRAINED

LT30 = PRETRAINED["digits"].with_name("digits-lt30")


def tenths(synthetic, step):
    return [[10 - round(10 * c) for c in row] for row in synthetic.TABLES[step]]


def test_a_run_gives_its_finished_model_and_its_data(synthetic, synthetic_runs):
    target = load_target(synthetic_runs / "lt")
    assert target.kept_tenths == tenths(synthetic, 3) and target.mean_kept == pytest.approx(0.6)
    assert (target.name, target.dataset, target.options["resolution"]) == ("lt", "digits", None)
    assert not target.model.training and not any(p.requires_grad for p in target.model.parameters())


@pytest.mark.parametrize("path", ["lt/checkpoint-2", "lt/checkpoint-2/adapter"])
def test_a_checkpoint_is_found_from_its_own_folder(synthetic, synthetic_runs, path):
    target = load_target(synthetic_runs / path)
    assert target.kept_tenths == tenths(synthetic, 2) and target.name == "lt, step 2"
    assert load_target(synthetic_runs / "lt", checkpoint=2).kept_tenths == target.kept_tenths


def test_the_final_folder_is_the_run(synthetic, synthetic_runs):
    assert load_target(synthetic_runs / "lt" / "final").kept_tenths == tenths(synthetic, 3)


def test_a_dense_run_has_no_routers(synthetic_runs):
    target = load_target(synthetic_runs / "dense")
    assert not target.routed and target.kept_tenths is None and target.mean_kept == 1


def test_a_run_s_data_are_read_as_they_were_trained_on(synthetic_runs, tmp_path: Path):
    run = shutil.copytree(synthetic_runs / "mod", tmp_path / "mod")
    info = json.loads((run / "run.json").read_text())
    wanted = {"caption_column": "said", "image_column": "photo", "keep_rows": "aesthetic >= 5"}
    (run / "run.json").write_text(json.dumps(info | {"arguments": info["arguments"] | wanted}))
    assert load_target(run).options == wanted | {"resolution": None}


def test_a_model_of_the_package_knows_its_data():
    target = load_target("digits", dtype=torch.bfloat16)
    assert target.dataset == "digits" and not target.routed and target.model.dtype == torch.bfloat16


def test_an_adapter_beside_its_model_or_alone(tmp_path: Path):
    config = DiffRatioConfig.from_dict(json.loads((LT30 / CONFIG_NAME).read_text())["config"])
    assert load_target(LT30).kept_tenths == config.kept_tenths(5)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        shutil.copy(LT30 / name, tmp_path)
    with pytest.raises(ValueError, match="base: .* holds no model; an adapter needs"):
        load_target(tmp_path)
    target = load_target(tmp_path, base="digits")
    assert target.kept_tenths == config.kept_tenths(5) and target.dataset == "digits"


@pytest.mark.parametrize("path", ["lt", "lt/final", "lt/checkpoint-2"])
def test_a_run_knows_its_own_base(path, synthetic_runs):
    with pytest.raises(ValueError, match="base='shapes': .* is of a run, which knows its own base"):
        load_target(synthetic_runs / path, base="shapes")


def test_a_whole_model_takes_no_base():
    with pytest.raises(ValueError, match="base='shapes': 'digits' is a model, not an adapter"):
        load_target("digits", base="shapes")


@pytest.mark.parametrize("size", [0, 500])
@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", WEIGHTS_NAME])
def test_a_damaged_file_is_named(name, size, synthetic_runs, tmp_path: Path):
    run = shutil.copytree(synthetic_runs / "lt", tmp_path / "lt")
    os.truncate(run / "final" / name, size)
    with pytest.raises(ValueError, match=f"final/{name} is damaged"):
        load_target(run)
    model = shutil.copytree(run / "final", tmp_path / "model")
    with pytest.raises(ValueError, match=f"model/{name} is damaged"):
        load_target(model)


def test_what_is_not_there_is_named(tmp_path: Path, synthetic_runs):
    with pytest.raises(ValueError, match="path: .* holds no run, model or adapter, and is not"):
        load_target(tmp_path)
    with pytest.raises(ValueError, match="checkpoint=3: .* is no run"):
        load_target("digits", checkpoint=3)
    with pytest.raises(ValueError, match="without checkpoint 9"):
        load_target(synthetic_runs / "lt", checkpoint=9)
