"""Adapters: `diffratio_config.json` and `diffratio_weights.safetensors`, never pickle."""

import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from diffratio_kernels import __version__

from ..files import replacing
from .adapter_file import (
    CONFIG_NAME,
    FORMAT,
    RATIOS,
    UNTRAINED,
    WEIGHTS_NAME,
    check_ratios,
    read_config,
    read_weights,
)
from .apply import check_same_routers, drop_ratios, remove_diffratio, route_blocks, warn_untrained
from .find import routed_layers, routed_model, transformer_of
from .offloaded import check_values, fetched
from .ratios import frozen_config
from .spacing import warn_uneven
from .state import RoutedLayer


def save_diffratio(model_or_pipe, directory: str | os.PathLike) -> None:
    """Write the routers and the config of a patched model; the model's own weights are not included.

    Routers that nothing has trained are named in the JSON file. While the model learns its ratios they are
    part of it: the config holds their nearest bins, the weights a tensor `ratios` [L, R], clamped, and the
    JSON file the table's mode and bins.
    Both files are written beside their places, and renamed into them once both are complete. Values are
    fetched from where offloading keeps them.

    Args:
        model_or_pipe: a routed model, or a pipeline with one.
        directory: made where it is not there.

    Raises:
        ValueError: the model is not patched, or is on the meta device, where nothing has a value.

    Example:
        >>> apply_diffratio(model, DiffRatioConfig(compression=0.0))
        >>> save_diffratio(model, "adapter")
    """
    model = transformer_of(model_or_pipe)
    routed_model(model)
    with fetched(model, _own_modules(model), "its routers are"):
        weights, config = _contents(model)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / WEIGHTS_NAME) as tensors, replacing(directory / CONFIG_NAME) as settings:
        save_file(weights, tensors, metadata={"diffratio": json.dumps(config)})
        settings.write_text(json.dumps(config, indent=2) + "\n")


def _contents(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors and the JSON of an adapter."""
    layers, shared = routed_layers(model), routed_model(model)
    weights = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in _router_state(layers).items()
    }
    table = shared.ratios
    if table is not None:
        table.invalidate()
    tenths, settings = [layer.kept_now() for layer in layers], shared.config
    try:
        configured = settings.kept_tenths(len(layers))
    except ValueError:  # it is for more layers than there are now
        configured = None
    if table is not None or tenths != configured:
        settings = frozen_config(settings, tenths)
    config = {
        "format": FORMAT,
        "diffratio_version": __version__,
        "base_model_class": type(model).__name__,
        "routed_layers": [layer.name for layer in layers],
        "config": settings.to_dict(),
    }
    untrained = [layer.name for layer in layers if layer.untrained]
    if untrained:
        config[UNTRAINED] = untrained
    if table is not None:
        weights[RATIOS] = torch.tensor([table.host()[layer.row] for layer in layers], dtype=torch.float32)
        config[RATIOS] = {"mode": table.mode, "bins": list(table.bins)}
    return weights, config


def _own_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that diffratio has put on a patched model."""
    table = routed_model(model).ratios
    return [layer.block.diffratio for layer in routed_layers(model)] + ([] if table is None else [table])


def load_diffratio(model_or_pipe, directory: str | os.PathLike):
    """Apply a saved adapter to a model of the same architecture.

    Ratios that were still being learned give the model at their nearest bins, for inference; a table that
    the model has goes. Everything is checked first: a bad adapter leaves an unpatched model unpatched and a
    patched one as it is.

    Args:
        model_or_pipe: a model or a pipeline, routed or not.
        directory: what `save_diffratio` or `diffratio train` wrote.

    Returns:
        What it was given.

    Raises:
        ValueError: the files are missing, damaged or for another model; or the model's routers are offloaded
            or on the meta device, where what is written is lost: load first, offload then.

    Warns:
        UserWarning: as `apply_diffratio` does.

    Example:
        >>> from diffratio.toy import DIGITS_LT30
        >>> model = load_diffratio(model, DIGITS_LT30)
    """
    model = transformer_of(model_or_pipe)
    directory = Path(directory)
    adapter, config = read_config(directory / CONFIG_NAME)
    weights = read_weights(directory / WEIGHTS_NAME)
    check_ratios(weights.pop(RATIOS, None), adapter, config, directory)

    routed = "_diffratio_model" in vars(model)
    if not routed:  # without overrides: they are for the adapter's layers, which must first be the model's
        route_blocks(model_or_pipe, replace(config, overrides={}))
    try:
        check_values(model, _own_modules(model), "its routers are")
        _check_layers(model, adapter)
        check_same_routers(routed_model(model), config)
        _check_weights(weights, _router_state(routed_layers(model)), directory)
    except ValueError:
        if not routed:
            remove_diffratio(model)
        raise
    drop_ratios(model)
    route_blocks(model, config)
    layers = routed_layers(model)
    with torch.no_grad():
        for name, tensor in _router_state(layers).items():
            tensor.copy_(weights[name])
    for layer in layers:
        weight, untrained = layer.block.diffratio.router_weight.detach(), adapter.get(UNTRAINED, [])
        layer.drawn = weight.to("cpu", copy=True) if layer.name in untrained else None
    warn_untrained(layers)
    warn_uneven(model_or_pipe)
    return model_or_pipe


def _router_state(layers: list[RoutedLayer]) -> dict[str, torch.Tensor]:
    return {
        # Asked for by name: PEFT's modules_to_save keeps an original and a trained copy of each.
        f"{layer.name}.diffratio.{name}": parameter
        for layer in layers
        for name in ("router_weight", "router_bias")
        if (parameter := getattr(layer.block.diffratio, name)) is not None
    }


def _check_layers(model: nn.Module, adapter: dict) -> None:
    if adapter.get("base_model_class") != type(model).__name__:
        raise ValueError(
            f"directory: the adapter is for a {adapter.get('base_model_class')}, not a {type(model).__name__}"
        )
    names = [layer.name for layer in routed_layers(model)]
    made_for = adapter["routed_layers"]
    if len(made_for) != len(names):
        raise ValueError(
            f"directory: the adapter was made for {len(made_for)} routed layers, the model has {len(names)}"
        )
    if made_for != names:
        raise ValueError("directory: the adapter was made for layers of other names than the model's")


def _check_weights(weights: dict, wanted: dict, directory: Path) -> None:
    missing, extra = sorted(set(wanted) - set(weights)), sorted(set(weights) - set(wanted))
    if missing or extra:
        raise ValueError(f"directory: weights in {directory} miss {missing[:3]} and have extra {extra[:3]}")
    for name, tensor in wanted.items():
        given = weights[name]
        if given.shape != tensor.shape or not given.is_floating_point():
            raise ValueError(
                f"directory: {name} is {given.dtype} {tuple(given.shape)}, "
                f"must be floating point {tuple(tensor.shape)}"
            )
        if not given.float().isfinite().all():
            raise ValueError(f"directory: {name} holds NaN or infinity")
