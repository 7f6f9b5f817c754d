"""A PixArt and a DiT of 32 channels, 3 layers and 16 tokens on disk, and runs that train them."""

import importlib.util
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel

from diffratio.diffusion import noise_schedule
from diffratio.train import TrainArguments, data, train

SMALL = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 3,
    "sample_size": 8,
    "patch_size": 2,
}
CAPTIONED = {"cross_attention_dim": 32, "caption_channels": 32, "norm_num_groups": 1}
QUICK = {
    "dataset_name": "digits",
    "max_train_steps": 6,
    "train_batch_size": 4,
    "checkpointing_steps": 3,
    "validation_steps": 3,
    "train_mode": "full",
    "learning_rate": 1e-3,
    "report_to": "none",
}


class Tiny:
    """`pixart`, `dit`: folders; `arguments(...)`: of a run of seconds; `train(...)`: runs it."""

    def __init__(self, root):
        self.root = root
        for name in ("pixart", "dit"):
            torch.manual_seed(0)
            model = self.make(name)
            with torch.no_grad():  # diffusers starts some layers at zero, behind which nothing can be seen
                for parameter in model.parameters():
                    parameter.add_(0.02 * torch.randn(parameter.shape))
            model.save_pretrained(root / name / "transformer")
            noise_schedule().save_pretrained(root / name / "scheduler")

    def make(self, name):
        if name == "dit":
            return DiTTransformer2DModel(**SMALL, in_channels=1, num_embeds_ada_norm=10, norm_num_groups=1)
        return PixArtTransformer2DModel(**SMALL, **CAPTIONED, in_channels=1, out_channels=1)

    def arguments(self, output_dir, model="pixart", **changes):
        given = {**QUICK, "pretrained_model_name_or_path": str(self.root / model), **changes}
        return TrainArguments.of(output_dir=str(output_dir), **given)

    def train(self, output_dir, **changes):
        return train(self.arguments(output_dir, **changes), progress=False)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return Tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def runs():
    """The module runs.py: tests cannot import their neighbours by name."""
    spec = importlib.util.spec_from_file_location("diffratio_runs", Path(__file__).with_name("runs.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Few images to validate on, and no Accelerator of another test: accelerate keeps its precision."""
    monkeypatch.setattr(data, "VALIDATION_IMAGES", 8)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
