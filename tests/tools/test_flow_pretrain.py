"""The script of the small flow model: its seed decides all, and it can stop before its schedule ends."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tools import flow_pretrain
from tools.toy_pretrain import LOG_FILE

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(flow_pretrain, "HELD_OUT", 8)


def test_the_same_seed_gives_the_same_pipeline(tmp_path):
    for name, seed in (("first", 0), ("second", 0), ("other", 1)):
        flow_pretrain.main(tmp_path / name, seed=seed, steps=3, stop=2, batch=4)
    first, second, other = (load_file(tmp_path / name / WEIGHTS) for name in ("first", "second", "other"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    index = json.loads((tmp_path / "first/model_index.json").read_text())
    assert index["_class_name"] == "FluxPipeline" and index["vae"] == [None, None]
    log = [json.loads(line) for line in (tmp_path / "first" / LOG_FILE).read_text().splitlines()]
    assert [line.get("step") for line in log] == [None, 0, 2, None] and "velocity_mse" in log[2]


def test_blocks_begin_as_the_identity_and_the_prediction_as_zero():
    model = flow_pretrain.small_flux(3, 64, seed=0)
    images, tokens, noise = torch.randn(2, 3, 32, 32), torch.randn(2, 5, 64), torch.randn(2, 3, 32, 32)
    error = flow_pretrain.velocity_error(model, images, tokens, torch.tensor([0.2, 0.8]), noise)
    torch.testing.assert_close(error, (noise - images).square().mean((1, 2, 3)))
