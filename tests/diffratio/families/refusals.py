"""What routed blocks refuse, tried: all that tests of refusals and docs/supported-models.md know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from inspect import signature
from unittest import mock

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_allegro import AllegroTransformerBlock
from diffusers.models.transformers.transformer_cosmos import CosmosTransformerBlock
from torch import Tensor, nn

from diffratio.families import spec_for
from diffratio.families.modules import ModuleSpec

from .cases import BLOCKS
from .cases.case import BATCH, HEADS, TEXT, WIDTH, Case, D, N
from .test_blocks import routed, run


def _pixart(**more) -> BasicTransformerBlock:
    given = {"cross_attention_dim": D, "norm_type": "ada_norm_single", "norm_elementwise_affine": False}
    return BasicTransformerBlock(D, HEADS, WIDTH, **given | more)


def pixart() -> Case:
    inputs = {
        "hidden_states": torch.randn(BATCH, N, D), "encoder_hidden_states": torch.randn(BATCH, TEXT, D),
        "timestep": torch.randn(BATCH, 6 * D),
    }  # fmt: skip
    block = _pixart()
    return Case(block, inputs, lambda b, kept: inputs, block.ff)


UNSUPPORTED: tuple[Callable[[], nn.Module], ...] = (
    lambda: _pixart(norm_type="layer_norm"),
    lambda: _pixart(norm_type="ada_norm_zero", num_embeds_ada_norm=10),
    lambda: _pixart(positional_embeddings="sinusoidal", num_positional_embeddings=N),
    lambda: _pixart(only_cross_attention=True),
    lambda: _pixart(norm_elementwise_affine=True),
    lambda: AllegroTransformerBlock(D, HEADS, WIDTH, norm_elementwise_affine=True),
    lambda: CosmosTransformerBlock(HEADS, WIDTH, D, before_proj=True),
)
"""Blocks of classes that have a spec, which does not describe them."""


def _image_first(case) -> None:
    case.told["indicator"] = case.told["indicator"].flip(1)


def _packed(case) -> None:
    case.told["segment_ids"] = torch.arange(17).expand(2, 17)


def _uncovered(case) -> None:
    case.told["text_indices"] = case.told["text_indices"][1:]


def _some_perturbed(case) -> None:
    case.told["perturbation_mask"] = case.inputs["perturbation_mask"]
    case.inputs["all_perturbed"] = None


def _gligen(case) -> None:
    case.inputs["cross_attention_kwargs"] = {"gligen": {}}


def _image_mask(case) -> None:
    case.inputs["attention_mask"] = torch.ones(BATCH, N)


CHANGES: tuple[tuple[str, Callable[[Case], None], str], ...] = (
    ("ideogram4", _image_first, "indicator: the image must come last"),
    ("ideogram4", _packed, "segment_ids: several samples packed into one"),
    ("minimax_h3", _uncovered, "video, audio and text indices are 23 of 24 rows"),
    ("ltx2_perturbed", _some_perturbed, "perturbation_mask: attention is left out of some samples"),
    ("pixart", _gligen, "cross_attention_kwargs\\['gligen'\\] is not supported"),
    ("pixart", _image_mask, "attention_mask over image tokens is not supported"),
)
"""What single families refuse: (case, what is done to it, what the error says)."""


def _give(case: Case, argument: str, value) -> None:
    case.inputs[argument] = value


class Tried:
    """A routed block of a case, to which things are done that it may refuse."""

    def __init__(self, name: str):
        torch.manual_seed(0)
        self.case = pixart() if name == "pixart" else BLOCKS[name]()
        self.model = routed(self.case)

    def error(self, change: Callable[[Case], None]) -> str | None:
        """What the ValueError says that a changed case ends in, None where it is taken."""
        changed = replace(self.case, inputs=dict(self.case.inputs), told=dict(self.case.told))
        change(changed)
        try:
            with torch.no_grad():
                run(changed, self.model)
        except ValueError as error:
            return str(error)
        return None

    def arguments(self) -> dict[str, Callable[[Case], None]]:
        """Those that its spec says to refuse, and what gives the block one."""
        refuse, names = ModuleSpec.refuse, set()

        def noted(spec, block, **given):
            names.update(given)
            return refuse(spec, block, **given)

        with mock.patch.object(ModuleSpec, "refuse", noted):
            self.error(lambda case: None)
        names &= set(signature(type(self.case.block).forward).parameters)
        values = {name: {"more": 1} if name.endswith("kwargs") else torch.ones(()) for name in names}
        return {name: partial(_give, argument=name, value=value) for name, value in values.items()}

    def float_masks(self) -> dict[str, Callable[[Case], None]]:
        """Those of numbers in the place of each mask of bools that the case has."""
        found = {}
        for argument, value in self.case.inputs.items():
            mask = value.get("attention_mask") if isinstance(value, dict) else value
            attends = isinstance(value, dict) or argument.endswith("mask") and argument != "target_token_mask"
            if attends and isinstance(mask, Tensor) and mask.dtype == torch.bool:
                name, given = argument, mask.float()
                if isinstance(value, dict):
                    name, given = "attention_mask", value | {"attention_mask": given}
                found[name] = partial(_give, argument=argument, value=given)
        return found


def refusals() -> dict[str, list[str]]:
    """Block class -> names of what it refuses, and what errors say of the rest."""
    found: dict[str, set[str]] = {}
    for name in (*BLOCKS, "pixart"):
        tried = Tried(name)
        errors = found.setdefault(type(tried.case.block).__name__, set())
        for argument, change in tried.arguments().items():
            error = tried.error(change)
            assert error is not None and error.startswith(argument), f"{name}: {argument}: {error}"
            errors.add(f"`{argument}`")
        masks = tried.float_masks().items()
        errors.update(f"`{mask}` of floats" for mask, change in masks if tried.error(change))
        others = (tried.error(change) for of, change, _ in CHANGES if of == name)
        errors.update(error.partition(";")[0].removesuffix(" by a routed block") for error in others)
    for make in UNSUPPORTED:
        block = make()
        found[type(block).__name__].add(spec_for(block).unsupported_reason(block))
    return {cls: sorted(errors) for cls, errors in sorted(found.items()) if errors}
