"""Finding the model in what a user has, and the routed blocks in the model."""

import torch
from torch import nn

from .state import RoutedLayer, RoutedModel

TABLE_NAME = "diffratio_ratios"
"""The child of a model that holds the ratios it learns."""


def transformer_of(model_or_pipe) -> nn.Module:
    """The model itself, or a pipeline's `transformer`, without the wrappers of torch.compile, DDP,
    DataParallel, AveragedModel and PEFT.

    A wrapper would add its prefix to the names of the blocks, and an adapter would fit that wrapper alone.
    """
    return unwrapped(model_or_pipe)[0]


def transformers_of(model_or_pipe) -> list:
    """The model itself, or all that a pipeline has: Wan 2.2's has one for noisy and one for clean steps."""
    second = getattr(model_or_pipe, "transformer_2", None)
    return [model_or_pipe] if second is None else [model_or_pipe.transformer, second]


def unwrapped(model_or_pipe) -> tuple[nn.Module, list[nn.Module]]:
    """`transformer_of`, and the wrappers that were seen through."""
    if len(transformers_of(model_or_pipe)) > 1:
        raise ValueError(
            f"{type(model_or_pipe).__name__} has two transformers; give pipe.transformer, then "
            "pipe.transformer_2"
        )
    model, wrappers = getattr(model_or_pipe, "transformer", model_or_pipe), []
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be an nn.Module or a pipeline with a transformer, got {type(model_or_pipe).__name__}"
        )
    around = (
        nn.parallel.DistributedDataParallel,
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
    )
    while True:
        inner = model
        if "_orig_mod" in model._modules:
            inner = model._orig_mod
        elif isinstance(model, around):
            inner = model.module
        elif hasattr(type(model), "get_base_model"):  # PEFT, without importing it
            inner = model.get_base_model()
        if inner is model:
            return model, wrappers
        wrappers.append(model)
        model = inner


def routed_blocks(model: nn.Module) -> list[nn.Module]:
    """The patched blocks as they are in the model now, in order."""
    return [module for module in model.modules() if "_diffratio" in vars(module)]


def routed_layers(model: nn.Module) -> list[RoutedLayer]:
    """The layers of the patched blocks as they are in the model now, numbered and named as they stand.

    Blocks that were deleted are not there; those that were moved, or copied from another place, belong to
    this model."""
    layers = []
    for name, module in model.named_modules():
        layer = vars(module).get("_diffratio")
        if layer is not None:
            layer.number, layer.name = len(layers), name
            layers.append(layer)
    shared = vars(model).get("_diffratio_model")
    if shared is not None:
        for layer in layers:
            layer.model = shared
        paths = [layer.name.split(".")[:-1] for layer in layers]
        holders = {".".join(path[:n]) for path in paths for n in range(len(path) + 1)}
        children = [model.get_submodule(name)._modules for name in sorted(holders)]
        shared.layers, shared.parents = layers, [(now, list(now.values())) for now in children]
    return layers


def routed_model(model: nn.Module, *, baseline: bool = False) -> RoutedModel:
    """What the layers of a patched model share; of a single block, or a module that holds some, theirs.

    Args:
        baseline: whether a model will do that has no routers but a training-free baseline.

    Raises:
        ValueError: there is no patched block, or a baseline where routers are asked for.
    """
    shared = _shared(model)
    if shared.baseline is not None and not baseline:
        raise ValueError(
            f"model {type(model).__name__} has the baseline {shared.baseline.name} and no routers; "
            "call remove_baseline first"
        )
    return shared


def _shared(model: nn.Module) -> RoutedModel:
    if "_diffratio_model" in vars(model):
        return model._diffratio_model
    blocks = routed_blocks(model)
    if not blocks:
        raise ValueError(f"model {type(model).__name__} has no diffratio blocks (call apply_diffratio first)")
    shared = blocks[0]._diffratio.model
    for block in blocks:  # copies of single blocks in one module are controlled together
        block._diffratio.model = shared
    return shared
