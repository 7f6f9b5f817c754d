"""The options that say which transformer: --preset, --model, --height, --width, --frames, --text-tokens."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..evaluation import models
from ..evaluation.flops import PRESETS, TransformerShape
from ..evaluation.flops.shapes import FAMILIES

Preset = Annotated[str | None, typer.Option(help=f"One of {', '.join([*PRESETS, *models.PRESETS])}.")]
Model = Annotated[Path | None, typer.Option(help="A diffusers model: folder or config.json.")]
Height = Annotated[int | None, typer.Option(help="Latent height: pixels / 8 with most VAEs.")]
Width = Annotated[int | None, typer.Option(help="Latent width; the height when left out.")]
Frames = Annotated[int | None, typer.Option(help="Latent frames, of a video model.")]
TextTokens = Annotated[
    int | None, typer.Option(help="Text tokens per sample; 120 (the paper's) or the preset's when left out.")
]


def shape_of(
    preset: str | None,
    model: Path | None,
    height: int | None,
    width: int | None,
    text_tokens: int | None,
    frames: int | None = None,
) -> TransformerShape | models.Preset:
    """The transformer that --preset or --model names (PixArt at 512 px without either), at its size in latent
    pixels: the sizes of PixArt and DiT, of other families the model and its inputs; a ValueError names the
    option."""
    if preset is not None and model is not None:
        raise ValueError("--model: give either --model or --preset")
    if width is not None and height is None:
        raise ValueError("--height: --width needs it")
    width = height if width is None else width
    config = None if model is None else _read_config(model)
    family = models.PRESETS.get(preset) if config is None else _of_config(config)
    if family is not None:
        return family.resized(height=height, width=width, text=text_tokens, frames=frames)
    if frames is not None:
        raise ValueError("--frames: the model is of images")
    if config is not None:
        if config.get("_class_name") not in FAMILIES:
            known = ", ".join(sorted({*FAMILIES, *models.INPUTS}))
            raise ValueError(f"--model: {config.get('_class_name')!r} is not one of {known}")
        return TransformerShape.from_config(config, height, width, text_tokens)
    preset = preset or "pixart-xl-512"
    if preset not in PRESETS:
        raise ValueError(f"--preset: {preset!r} is not one of {', '.join([*PRESETS, *models.PRESETS])}")
    if text_tokens is not None and preset.startswith("dit"):
        raise ValueError(f"--text-tokens: {preset} reads no text")
    shape = PRESETS[preset]
    if text_tokens is not None:
        shape = replace(shape, text_tokens=text_tokens)
    return shape if height is None else shape.resized(height, width)


def _of_config(config: dict[str, Any]) -> models.Preset | None:
    """A model of another family by its config, at the size of the first preset of its class."""
    alike = (one for one in models.PRESETS.values() if one.model == config.get("_class_name"))
    first = next(alike, None)
    own = {name: value for name, value in config.items() if not name.startswith("_")}
    return None if first is None else replace(first, config=own)


def tenths_of(part: float, option: str) -> int:
    """A part of the tokens as an integer of tenths; a ValueError names the option.

    0.3 is no binary fraction, and kept counts must not depend on that.
    """
    if 0 <= part <= 1:
        tenths = round(10 * part)
        if abs(10 * part - tenths) < 1e-9:
            return tenths
    raise ValueError(f"{option}: {part} is not one of 0, 0.1, ... 1")


def _read_config(path: Path) -> dict[str, Any]:
    candidates = [path / "config.json", path / "transformer" / "config.json"] if path.is_dir() else [path]
    found = [candidate for candidate in candidates if candidate.is_file()]
    if not found:
        raise ValueError(f"--model: no config.json at {path}")
    config = read_json(found[0], "--model")
    if not isinstance(config, dict):
        raise ValueError(f"--model: {found[0]} is not a model's config")
    return config


def read_json(path: Path, option: str) -> Any:
    """A file's JSON; a ValueError names the option."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))  # Windows puts a byte order mark first
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{option}: cannot read {path}: {error}") from error
