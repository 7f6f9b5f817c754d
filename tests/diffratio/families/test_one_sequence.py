"""Families of one sequence of image and text: what a routed block does not take, and what stays dense."""

import pytest
import torch

from diffratio import DiffRatioConfig, apply_diffratio

from .cases import BLOCKS, MODELS
from .test_blocks import made, routed, run
from .test_models import made as made_model


def _omni(case) -> None:
    case.told["x"] = [[image] for image in case.told["x"]]
    case.inputs["noise_mask"] = torch.zeros(2, 64, dtype=torch.long)


def _float_mask(case) -> None:
    case.inputs["attention_mask"] = torch.zeros(2, 1, 1, 17)


def _pairs_of_tokens(case) -> None:
    case.inputs["attention_mask"] = torch.ones(2, 1, 17, 17, dtype=torch.bool)


def _image_first(case) -> None:
    case.told["indicator"] = case.told["indicator"].flip(1)


def _packed(case) -> None:
    case.told["segment_ids"] = torch.arange(17).expand(2, 17)


def _uncovered(case) -> None:
    case.told["text_indices"] = case.told["text_indices"][1:]


def _masked(case) -> None:
    case.inputs["attention_mask"] = torch.ones(1, dtype=torch.bool)


def _kwargs(case) -> None:
    case.inputs["attention_kwargs"] = {"scale": 0.5}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("z_image", _omni, "noise_mask is not supported"),
        ("krea2", _float_mask, "encoder_attention_mask: a mask of torch.float32 is added"),
        ("krea2", _pairs_of_tokens, "encoder_attention_mask: a mask of pairs of tokens"),
        ("ideogram4", _image_first, "indicator: the image must come last"),
        ("ideogram4", _packed, "segment_ids: several samples packed into one"),
        ("minimax_h3", _uncovered, "video, audio and text indices are 23 of 24 rows"),
        ("minimax_h3", _masked, "attention_mask is not supported"),
        ("auraflow_single", _kwargs, r"attention_kwargs \(scale\) is not supported"),
    ],
)
def test_refused_by_name(name, change, message):
    assert name in BLOCKS
    case = made(name)
    model = routed(case)
    change(case)
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        run(case, model)


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
