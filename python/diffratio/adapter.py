"""Adapters: `diffratio_config.json` and `diffratio_weights.safetensors`, never pickle."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from diffratio_kernels import __version__

from .config import DiffRatioConfig
from .patch import apply_diffratio, plan_of, remove_diffratio, routed_blocks, transformer_of

CONFIG_NAME = "diffratio_config.json"
WEIGHTS_NAME = "diffratio_weights.safetensors"
FORMAT = 1


def save_diffratio(model_or_pipe, directory: str | os.PathLike) -> None:
    """Write the routers and the config of a patched model; the model's own weights are not included.

    Both files are written beside their places, and renamed into them once both are complete.
    """
    model = transformer_of(model_or_pipe)
    plan = plan_of(model)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in _router_state(model).items()}
    config = {
        "format": FORMAT,
        "diffratio_version": __version__,
        "base_model_class": type(model).__name__,
        "routed_layers": [state.name for state in plan.layers],
        "config": plan.config.to_dict(),
    }
    with (
        _replacing(directory / WEIGHTS_NAME) as weights_path,
        _replacing(directory / CONFIG_NAME) as config_path,
    ):
        save_file(weights, weights_path, metadata={"diffratio": json.dumps(config)})
        config_path.write_text(json.dumps(config, indent=2) + "\n")


def load_diffratio(model_or_pipe, directory: str | os.PathLike):
    """Apply a saved adapter to a model of the same architecture. Returns what it was given.

    Everything is checked first: a bad adapter leaves an unpatched model unpatched and a patched one as it is.
    """
    model = transformer_of(model_or_pipe)
    directory = Path(directory)
    adapter, config = _read_config(directory / CONFIG_NAME)
    weights = _read_weights(directory / WEIGHTS_NAME)

    fresh = "_diffratio_plan" not in vars(model)
    if not fresh:
        _check_layers(model, adapter)
        _check_weights(weights, _router_state(model), directory)
    apply_diffratio(model, config)
    try:
        if fresh:
            _check_layers(model, adapter)
            _check_weights(weights, _router_state(model), directory)
    except ValueError:
        remove_diffratio(model)
        raise
    with torch.no_grad():
        for name, tensor in _router_state(model).items():
            tensor.copy_(weights[name])
    return model_or_pipe


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


def _read_config(path: Path) -> tuple[dict, DiffRatioConfig]:
    try:
        adapter = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"directory: no {path.name} in {path.parent} ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"directory: {path} is not JSON ({error})") from None
    if not isinstance(adapter, dict) or adapter.get("format") != FORMAT:
        raise ValueError(f"directory: {path} is not a diffratio adapter of format {FORMAT}")
    layers = adapter.get("routed_layers")
    if not isinstance(layers, list) or not all(isinstance(name, str) for name in layers):
        raise ValueError(f"directory: {path} has no list routed_layers")
    if "config" not in adapter:
        raise ValueError(f"directory: {path} has no config")
    try:
        config = DiffRatioConfig.from_dict(adapter["config"])
        config.kept_tenths(len(layers))
    except ValueError as error:
        raise ValueError(f"directory: {path}: {error}") from None
    return adapter, config


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"directory: no {path.name} in {path.parent}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"directory: {path} is not a safetensors file ({error})") from None


def _check_layers(model: nn.Module, adapter: dict) -> None:
    if adapter.get("base_model_class") != type(model).__name__:
        raise ValueError(
            f"directory: the adapter is for a {adapter.get('base_model_class')}, not a {type(model).__name__}"
        )
    names = [state.name for state in plan_of(model).layers]
    if adapter["routed_layers"] != names:
        raise ValueError(
            f"directory: the adapter routes {len(adapter['routed_layers'])} layers of a "
            f"{adapter.get('base_model_class')}, this {type(model).__name__} has {len(names)}, not the same"
        )


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
