"""Adapters: `diffratio_config.json` and `diffratio_weights.safetensors`, never pickle."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from diffratio_kernels import __version__

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
from .offloaded import check_values, fetched
from .patch import (
    check_same_routers,
    drop_ratios,
    plan_of,
    remove_diffratio,
    route_blocks,
    routed_blocks,
    transformer_of,
    warn_untrained,
)
from .ratios import frozen_config
from .state import Plan


def save_diffratio(model_or_pipe, directory: str | os.PathLike) -> None:
    """Write the routers and the config of a patched model; the model's own weights are not included.

    Routers that nothing has trained are named in the JSON file. While the model learns its ratios they are
    part of it: the config holds their nearest bins, the weights a tensor `ratios` [L, R], clamped, and the
    JSON file the table's mode and bins.
    Both files are written beside their places, and renamed into them once both are complete. Values are
    fetched from where offloading keeps them.

    Raises:
        ValueError: the model is not patched, or is on the meta device, where nothing has a value.
    """
    model = transformer_of(model_or_pipe)
    plan = plan_of(model)
    with fetched(model, _own_modules(model), "its routers are"):
        weights, config = _contents(model, plan)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with (
        _replacing(directory / WEIGHTS_NAME) as weights_path,
        _replacing(directory / CONFIG_NAME) as config_path,
    ):
        save_file(weights, weights_path, metadata={"diffratio": json.dumps(config)})
        config_path.write_text(json.dumps(config, indent=2) + "\n")


def _contents(model: nn.Module, plan: Plan) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors and the JSON of an adapter."""
    weights = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in _router_state(model).items()
    }
    config = {
        "format": FORMAT,
        "diffratio_version": __version__,
        "base_model_class": type(model).__name__,
        "routed_layers": [state.name for state in plan.layers],
        "config": plan.config.to_dict(),
    }
    untrained = [state.name for state in plan.layers if state.untrained]
    if untrained:
        config[UNTRAINED] = untrained
    if plan.ratios is not None:
        table = plan.ratios
        table.refresh()
        weights[RATIOS] = torch.tensor(table.host())
        config["config"] = frozen_config(plan.config, table.nearest()).to_dict()
        config[RATIOS] = {"mode": table.mode, "bins": list(table.bins)}
    return weights, config


def _own_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that diffratio has put on a patched model."""
    table = [] if plan_of(model).ratios is None else [plan_of(model).ratios]
    return [block.diffratio for block in routed_blocks(model)] + table


def load_diffratio(model_or_pipe, directory: str | os.PathLike):
    """Apply a saved adapter to a model of the same architecture. Returns what it was given.

    Ratios that were still being learned give the model at their nearest bins, for inference; a table that
    the model has goes. Everything is checked first: a bad adapter leaves an unpatched model unpatched and a
    patched one as it is.

    Raises:
        ValueError: the files are missing, damaged or for another model; or the model's routers are offloaded
            or on the meta device, where what is written is lost: load first, offload then.
    """
    model = transformer_of(model_or_pipe)
    directory = Path(directory)
    adapter, config = read_config(directory / CONFIG_NAME)
    weights = read_weights(directory / WEIGHTS_NAME)
    check_ratios(weights.pop(RATIOS, None), adapter, config, directory)

    if "_diffratio_plan" in vars(model):
        check_values(model, _own_modules(model), "its routers are")
        _check_layers(model, adapter)
        check_same_routers(plan_of(model), config)
        _check_weights(weights, _router_state(model), directory)
        drop_ratios(model)
    else:
        # The overrides are for the adapter's layers, which must first be the model's.
        route_blocks(model, replace(config, overrides={}))
        try:
            check_values(model, _own_modules(model), "its routers are")
            _check_layers(model, adapter)
            _check_weights(weights, _router_state(model), directory)
        except ValueError:
            remove_diffratio(model)
            raise
    route_blocks(model, config)
    with torch.no_grad():
        for name, tensor in _router_state(model).items():
            tensor.copy_(weights[name])
    _mark_untrained(plan_of(model), adapter.get(UNTRAINED, []))
    warn_untrained(plan_of(model))
    return model_or_pipe


def _mark_untrained(plan: Plan, names: list[str]) -> None:
    """An adapter of routers that were never trained loads as such."""
    for state in plan.layers:
        weight = state.block.diffratio.router_weight.detach()
        state.drawn = weight.to("cpu", copy=True) if state.name in names else None


def _router_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        # Asked for by name: PEFT's modules_to_save keeps an original and a trained copy of each.
        f"{block._diffratio.name}.diffratio.{name}": parameter
        for block in routed_blocks(model)
        for name in ("router_weight", "router_bias")
        if (parameter := getattr(block.diffratio, name)) is not None
    }


class _replacing:
    """`with _replacing(path) as temporary`: the temporary file takes the path's place if nothing failed."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Path:
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        os.close(handle)
        self.temporary = Path(name)
        return self.temporary

    def __exit__(self, error, *_):
        if error is None:
            self.temporary.chmod(0o644)
            self.temporary.replace(self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def _check_layers(model: nn.Module, adapter: dict) -> None:
    if adapter.get("base_model_class") != type(model).__name__:
        raise ValueError(
            f"directory: the adapter is for a {adapter.get('base_model_class')}, not a {type(model).__name__}"
        )
    names = [state.name for state in plan_of(model).layers]
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
