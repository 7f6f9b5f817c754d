"""Blocks that are not routed: the error says why, and the list names classes that exist."""

import importlib
import inspect
import pkgutil

import pytest
from diffusers import SanaTransformer2DModel
from diffusers.models import transformers
from torch import nn

from diffratio import apply_diffratio
from diffratio.families import spec_for
from diffratio.families.not_routed import NOT_ROUTED


def test_the_error_says_why():
    model = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=8,
        sample_size=4,
    )  # fmt: skip
    with pytest.raises(ValueError, match="SanaTransformerBlock: its MLP is a 3x3 convolution"):
        apply_diffratio(model)
    assert not any("diffratio" in name for name, _ in model.named_parameters())


def test_a_class_of_the_same_name_of_others_is_not_meant():
    class SanaTransformerBlock(nn.Module):
        pass

    with pytest.raises(ValueError, match="see register_block_spec for blocks of your own"):
        apply_diffratio(nn.Sequential(SanaTransformerBlock()))


def test_the_list_names_classes_without_a_spec():
    found = {}
    for module in pkgutil.iter_modules(transformers.__path__):
        module = importlib.import_module(f"{transformers.__name__}.{module.name}")
        for name, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, nn.Module) and cls.__module__ == module.__name__:
                found.setdefault(name, []).append(spec_for(cls.__new__(cls)))
    assert NOT_ROUTED.keys() <= found.keys()
    assert [name for name in NOT_ROUTED if None not in found[name]] == []


HELPERS = (
    "FinalLayer", "OutLayer", "OutLayerAudio", "ConvLayer", "MoELayer", "FiLMLayer",  # no blocks
    "RefinerBlock", "TextFusionBlock", "TransformerEncoderBlock", "PerceiverLayer",  # of text alone
    "PreFinalBlock", "HiDreamBlock", "Kandinsky6TransformerDecoderBlock",  # a part of a block, or around it
    "ConvNeXtV2Block", "ResBlock", "FaceBlockCrossAttention",
)  # fmt: skip
"""Ends of names that say block or layer."""


def test_every_block_of_diffusers_has_a_spec_or_a_reason():
    unknown = []
    for module in pkgutil.iter_modules(transformers.__path__):
        module = importlib.import_module(f"{transformers.__name__}.{module.name}")
        for name, cls in inspect.getmembers(module, inspect.isclass):
            own = issubclass(cls, nn.Module) and cls.__module__ == module.__name__
            if own and ("Block" in name or name.endswith("Layer")) and not name.endswith(HELPERS):
                known = name in NOT_ROUTED or spec_for(cls.__new__(cls)) is not None
                unknown += [] if known else [f"{module.__name__}.{name}"]
    assert unknown == []
