"""Families of one sequence of image and text: what stays dense, and what is read."""

import pytest
import torch

from diffratio import DiffRatioConfig, apply_diffratio

from .cases import MODELS
from .test_models import made as made_model


@pytest.mark.parametrize("name", ["z_image", "lumina2"])
def test_refiners_stay_dense(name):
    assert name in MODELS
    model, _ = made_model(name)
    apply_diffratio(model, DiffRatioConfig(compression=0.0))
    dense = [module for module, _ in model.named_modules() if module.endswith("refiner.0")]
    assert sorted(model._diffratio_model.dense) == sorted(dense) and len(dense) == 2
    assert sum("_diffratio" in vars(block) for block in model.layers) == len(model.layers)


def test_values_are_read_once_for_all_steps(monkeypatch):
    """Where Ideogram's image starts: the first step waits for it, others that get the same tensor do not."""
    model, inputs = made_model("ideogram4")
    apply_diffratio(model, DiffRatioConfig(compression=0.0))
    reads = []
    monkeypatch.setattr("diffratio.families.ideogram4._image_start", lambda t: reads.append(t) or 5)
    with torch.no_grad():
        for _ in range(3):
            model(**inputs)
        assert len(reads) == 1
        inputs["indicator"].add_(0)  # a new version of its values
        model(**inputs)
    assert len(reads) == 2
