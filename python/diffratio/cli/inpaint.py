"""`diffratio inpaint`: repaint the masked part of a picture."""

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image, ImageOps, UnidentifiedImageError

from .eval import Base, Checkpoint, Dataset, Device, Sampler, Seed, load
from .output import check_file, names_errors


@names_errors
def inpaint(
    path: Annotated[
        str, typer.Argument(metavar="MODEL", help="A pipeline, a run, or a model on pixels, and its adapter.")
    ],
    image: Annotated[Path, typer.Option(help="The picture.")],
    mask: Annotated[Path, typer.Option(help="Of the same size; white is repainted.")],
    prompt: Annotated[str, typer.Option(help="What is to be seen there.")],
    out: Annotated[Path, typer.Option(help="The result, a PNG file.")] = Path("out/inpainted.png"),
    system: Annotated[
        str | None, typer.Option(help="lazy, image or crop. Default: the run's, or lazy for such a model.")
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    sampler: Sampler = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler.")] = 100,
    guidance: Annotated[float, typer.Option(help="Weight of classifier-free guidance, 1 is none.")] = 4.5,
    strength: Annotated[
        float, typer.Option(help="Below 1 the hole begins with what is there, and that part of the steps.")
    ] = 1.0,
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
    base: Base = None,
    dataset: Dataset = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Repaint the white part of a mask; every other pixel comes back as it was."""
    check_file(out)
    if out.suffix.lower() != ".png":
        raise ValueError(f"out={str(out)!r} must be a PNG file: others change pixels outside of the mask")
    picture, white = _opened(image, "image"), _opened(mask, "mask")
    if picture.size != white.size:
        sizes = (f"{one.width} x {one.height}" for one in (white, picture))
        raise ValueError("mask is {}, image is {}: their sizes must be equal".format(*sizes))
    marked = np.asarray(white.convert("L")) > 127
    if not marked.any():
        raise ValueError(f"mask={str(mask)!r} is empty: nothing of it is white, so there is nothing to paint")
    from ..evaluation.editor import editor_of
    from ..evaluation.quality import SampleSettings
    from ..inpainting import inpaint as repaint

    target = load(path, device, checkpoint=checkpoint, base=base, dataset=dataset)
    SampleSettings.of(target, sampler=sampler, steps=steps)  # complains
    pipe = editor_of(target, path, system, sampler)
    pipe.set_progress_bar_config(disable=True if as_json else None)  # None: where there is no terminal
    begun = time.perf_counter()
    [made] = repaint(
        pipe, picture, white, prompt, pipe.config.system, steps, guidance, strength=strength,
        negative_prompt=negative_prompt, generator=torch.Generator().manual_seed(seed),
        max_sequence_length=target.text_tokens,
    )  # fmt: skip
    report = {"picture": str(out), "system": pipe.config.system, "steps": steps, "guidance": guidance}
    report |= {"sampler": type(pipe.scheduler).__name__, "strength": strength, "seed": seed}
    report |= {"seconds": time.perf_counter() - begun}
    report |= {"hole": float(marked.mean()), "outside_pixels_changed": _changed(picture, made, ~marked)}
    out.parent.mkdir(parents=True, exist_ok=True)
    made.save(out, icc_profile=picture.info.get("icc_profile"))  # without it colours look different
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    typer.echo(
        f"{out} written: {report['hole']:.1%} of the picture repainted in {report['seconds']:.1f} s by "
        f"{report['system']} and {report['sampler']}; "
        f"{report['outside_pixels_changed']} pixels outside of the mask differ"
    )


def _opened(path: Path, name: str) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return ImageOps.exif_transpose(picture)  # as it is seen
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{name}={str(path)!r} is no picture that can be read ({error})") from None


def _changed(before: Image.Image, after: Image.Image, where: np.ndarray) -> int:
    """How many pixels differ."""
    before, after = (np.asarray(one).reshape(*where.shape, -1) for one in (before.convert(after.mode), after))
    return int((before != after).any(-1)[where].sum())
