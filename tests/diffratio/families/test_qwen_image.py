"""What Qwen-Image's blocks are told of their tokens."""

import pytest
import torch

from diffratio import DiffRatioConfig, apply_diffratio
from diffratio.families.references import target_of_shapes

from .cases import BLOCKS, MODELS
from .cases.case import Holder

MADE, REFERENCE, LARGER = (1, 3, 4), (1, 2, 2), (1, 4, 4)


@pytest.mark.parametrize(
    ("shapes", "layered", "target"),
    [
        (None, False, None),
        ([[MADE]] * 2, False, None),
        ([MADE] * 2, False, None),  # as its ControlNet is given them
        ([[MADE, REFERENCE]] * 2, False, 12),
        ([[MADE, REFERENCE, LARGER]], False, 12),
        ([[MADE, MADE, MADE, REFERENCE]], True, 36),
    ],
)
def test_references_stand_behind_what_is_made(shapes, layered, target):
    assert target_of_shapes(shapes, layered) == target


@pytest.mark.parametrize(
    ("name", "routed"), [("qwen_image", 36), ("qwen_image_edit", 36), ("qwen_image_layered", 48)]
)
def test_all_that_is_made_may_be_skipped_and_no_reference(name, routed):
    model, inputs = MODELS[name]()
    apply_diffratio(model, DiffRatioConfig(compression=0.0))
    with torch.no_grad():
        model(**inputs)
    assert {block._diffratio.tokens for block in model.transformer_blocks} == {routed}


def test_a_mask_that_attention_would_add_is_refused():
    case = BLOCKS["qwen_image_masked"]()
    model = Holder(case.block)
    apply_diffratio(model, DiffRatioConfig(compression=0.0))
    case.inputs["encoder_hidden_states_mask"] = case.inputs["encoder_hidden_states_mask"].float()
    with pytest.raises(ValueError, match="encoder_hidden_states_mask: attention adds a float mask"):
        model(torch.tensor([0.3, 0.7]), case.inputs, **case.told)
