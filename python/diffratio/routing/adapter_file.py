"""The two files of an adapter, as they are read: everything is checked, whatever they hold."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from diffratio_kernels.blocks.ratio_table import RatioTable, checked_bins

from ..config import DiffRatioConfig

CONFIG_NAME = "diffratio_config.json"
WEIGHTS_NAME = "diffratio_weights.safetensors"
FORMAT = 1
RATIOS = "ratios"
UNTRAINED = "untrained_routers"
_LARGEST_CONFIG = 2**24  # bytes; 1000 layers of 1000 regions take 6 million
_MOST_LAYERS = 1000


def read_config(path: Path) -> tuple[dict, DiffRatioConfig]:
    """The adapter's JSON and the settings in it; a ValueError names what is wrong."""
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_CONFIG + 1)
        if len(text) > _LARGEST_CONFIG:
            raise ValueError(f"it is longer than {_LARGEST_CONFIG} bytes")
        adapter = json.loads(text)
    except OSError as error:
        raise ValueError(f"directory: no {path.name} in {path.parent} ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"directory: {path} is not JSON ({error})") from None
    if not isinstance(adapter, dict) or adapter.get("format") != FORMAT:
        raise ValueError(f"directory: {path} is not a diffratio adapter of format {FORMAT}")
    layers = adapter.get("routed_layers")
    if not isinstance(layers, list) or not all(isinstance(name, str) for name in layers):
        raise ValueError(f"directory: {path} has no list routed_layers")
    if len(layers) > _MOST_LAYERS:
        raise ValueError(f"directory: {path} routes {len(layers)} layers, more than {_MOST_LAYERS}")
    untrained = adapter.get(UNTRAINED, [])
    if not isinstance(untrained, list) or not all(name in layers for name in untrained):
        raise ValueError(f"directory: {path} has {UNTRAINED} that are no list of routed_layers")
    if "config" not in adapter:
        raise ValueError(f"directory: {path} has no config")
    try:
        config = DiffRatioConfig.from_dict(adapter["config"])
        config.kept_tenths(len(layers))
    except ValueError as error:
        raise ValueError(f"directory: {path}: {error}") from None
    return adapter, config


def read_weights(path: Path) -> dict[str, Tensor]:
    """The adapter's tensors; a ValueError where the file is missing or no safetensors file."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"directory: no {path.name} in {path.parent}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"directory: {path} is not a safetensors file ({error})") from None


def check_files(folder: Path) -> None:
    """Every safetensors file in `folder` is whole; a ValueError names the first that is not."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"directory: {path} is damaged, not a whole safetensors file ({error})"
            ) from None


def check_ratios(ratios: Tensor | None, adapter: dict, config: DiffRatioConfig, directory: Path):
    """The ratios, if any, are numbers of a table that gives the config's bins."""
    settings = adapter.get(RATIOS)
    if ratios is None and settings is None:
        return
    if ratios is None or settings is None:
        missing, where = (WEIGHTS_NAME, CONFIG_NAME) if ratios is None else (CONFIG_NAME, WEIGHTS_NAME)
        raise ValueError(f"directory: {RATIOS} is in {where} of {directory} and not in {missing}")
    if not isinstance(settings, dict) or settings.keys() != {"mode", "bins"}:
        raise ValueError(f"directory: {RATIOS}={settings!r} must hold mode and bins")
    layers = len(adapter["routed_layers"])
    try:
        bins = checked_bins(settings["bins"])
        table = RatioTable(layers, config.num_regions, mode=settings["mode"], bins=bins, start=bins[0] / 10)
    except ValueError as error:
        raise ValueError(f"directory: {RATIOS} in {directory}: {error}") from None
    wanted = tuple(table.ratios.shape)
    if ratios.dtype != torch.float32 or tuple(ratios.shape) != wanted:
        raise ValueError(
            f"directory: {RATIOS} is {ratios.dtype} {tuple(ratios.shape)}, must be torch.float32 {wanted}"
        )
    low, high = table.interval
    if not ((ratios >= low) & (ratios <= high)).all():  # NaN too
        raise ValueError(f"directory: {RATIOS} in {directory} must all be in {low}..{high}")
    with torch.no_grad():
        table.ratios.copy_(ratios)
    if table.nearest() != config.kept_tenths(layers):
        raise ValueError(f"directory: the nearest bins of {RATIOS} are not those of config in {directory}")
