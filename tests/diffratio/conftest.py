"""Tiny PixArt and DiT models with random weights, inputs for them, and routers that really choose."""

import importlib.util
from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel

from diffratio import DiffRatioConfig, apply_diffratio, record_routing
from diffratio.routing.find import routed_blocks

# Batch 2 and 2 heads on purpose: a mask or a gate that is broadcast over the wrong one of the two goes
# unnoticed with any other pair of numbers.
SMALL = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3, "sample_size": 16}
CAPTIONED = {"cross_attention_dim": 32, "caption_channels": 24, "in_channels": 4, "norm_num_groups": 1}
BATCH, TOKENS, TEXT = 2, 64, 6


class Tiny:
    """Makes models in eval mode, patches and calls them."""

    batch, tokens, layers = BATCH, TOKENS, SMALL["num_layers"]

    def pixart(self, **overrides):
        return PixArtTransformer2DModel(**{**SMALL, **CAPTIONED, "out_channels": 4, **overrides}).eval()

    def dit(self, **overrides):
        return DiTTransformer2DModel(**{**SMALL, "num_embeds_ada_norm": 1000, **overrides}).eval()

    def make(self, kind, **overrides):
        return getattr(self, kind)(**overrides)

    def inputs(self, model, timestep=500, batch=BATCH):
        """Keyword arguments of one call; PixArt gets a text mask that is ragged and no prefix."""
        generator = torch.Generator().manual_seed(7)
        dtype = next(model.parameters()).dtype
        latent = torch.randn(batch, 4, 16, 16, generator=generator).to(dtype)
        times = torch.full((batch,), timestep) if isinstance(timestep, int) else torch.as_tensor(timestep)
        if isinstance(model, DiTTransformer2DModel):
            return {"hidden_states": latent, "timestep": times, "class_labels": torch.arange(batch)}
        text = torch.randn(batch, TEXT, 24, generator=generator).to(dtype)
        mask = torch.rand(batch, TEXT, generator=generator) > 0.4
        mask[:, 0], mask[:, -1], mask[0, 1] = False, True, False
        return {
            "hidden_states": latent,
            "encoder_hidden_states": text,
            "timestep": times,
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
            "encoder_attention_mask": mask.long(),
        }

    def run(self, model, inputs, grad=False):
        """The output of one call; with gradients enabled the blocks' own modules run, else `mod_block`."""
        with torch.set_grad_enabled(grad):
            return model(**inputs, return_dict=False)[0]

    def route(self, model, compression=0.5, **settings):
        """Apply, with routers whose scores differ clearly from token to token."""
        apply_diffratio(model, DiffRatioConfig(compression, **settings))
        generator = torch.Generator().manual_seed(3)
        for block in routed_blocks(model):
            weight = block.diffratio.router_weight
            weight.data.copy_(torch.randn(weight.shape, generator=generator))
        return model

    def kept(self, model, inputs, grad=False):
        """Kept tokens of every layer and sample in one call: a list of lists."""
        with record_routing(model) as log:
            self.run(model, inputs, grad)
        return [entry.kept().sum(1).tolist() for entry in log]

    def snapshot(self, model):
        """All that patching may touch, comparable by ==: attributes, hooks, names, storages and bits."""
        modules = {
            name: (type(module), sorted(vars(module)), list(module._modules), len(module._forward_pre_hooks))
            for name, module in model.named_modules()
        }
        tensors = {
            name: (tensor.dtype, tensor.shape, tensor.view(torch.uint8).numpy().tobytes())
            for name, tensor in model.state_dict().items()
        }
        return modules, tensors


@pytest.fixture
def tiny():
    return Tiny()


@pytest.fixture(params=["pixart", "dit"])
def model(request, tiny):
    return tiny.make(request.param)


def _beside(name):
    """The module tests/diffratio/<name>.py."""
    spec = importlib.util.spec_from_file_location(f"diffratio_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def synthetic():
    """The maker of run directories, tests/diffratio/synthetic_run.py."""
    return _beside("synthetic_run")


@pytest.fixture(scope="session")
def flow_pipelines():
    """The maker of tiny pipelines, tests/diffratio/tiny_pipelines.py."""
    return _beside("tiny_pipelines")


@pytest.fixture(scope="session")
def op_recorder():
    """The class `OpRecorder` of tests/diffratio/op_recorder.py."""
    return _beside("op_recorder").OpRecorder


@pytest.fixture(scope="session")
def synthetic_runs(synthetic, tmp_path_factory):
    """Folder with the runs "lt", "mod" and "dense"."""
    folder = tmp_path_factory.mktemp("runs")
    for method in ("lt", "mod", "dense"):
        synthetic.make_run(folder / method, method)
    return folder
