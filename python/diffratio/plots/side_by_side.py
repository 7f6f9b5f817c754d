"""What several models make of the same prompts and noise, or paint into the same holes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..evaluation.inpainting import Repainting, judge_of
from ..evaluation.quality import Judge, SampleSettings
from ..evaluation.target import load_target
from .pictures import side_by_side
from .style import save

GIVEN = "given"
"""The row of images with holes."""


def draw_side_by_side(
    paths: Sequence[Path],
    out: Path,
    settings: SampleSettings,
    prompts: Sequence[str] = (),
    baselines: Sequence[str] = (),
    *,
    device: str = "cpu",
    progress: bool = True,
) -> Path:
    """Write ``side-by-side.png``: of the same prompts and noise what each run or model draws, a row each.

    Args:
        paths: runs, and whatever ``load_target`` takes.
        out: the folder of the picture.
        settings: how every model is sampled.
        prompts: none are the captions of the first held-out images, as many as ``settings`` has samples.
        baselines: what is put on the first of ``paths``, one after the other, for further rows.
        device: cpu or cuda.
        progress: show progress bars on standard error.

    Raises:
        ValueError: a model makes no images of the data set of the first.
    """
    rows: dict[str, Tensor] = {}
    judge = None
    for path, baseline in [*((path, None) for path in paths), *((paths[0], one) for one in baselines)]:
        target = load_target(path, device=device, baseline=baseline)
        name = target.name if baseline is None else f"{target.name}, {baseline}"
        if judge is None or target.repaints:
            judge = judge_of(target, settings, progress)
            rows |= _given(judge, name, rows)
        if (reason := judge.why_not(target)) is not None:
            raise ValueError(f"side-by-side: {name}: {reason}")
        if name in rows:
            raise ValueError(f"paths: two of them have the name {name!r}")
        rows[name] = judge.samples(target, f"sampling {name}", captions=list(prompts) or None)
    captions = list(prompts) or judge.held_out.captions(torch.arange(settings.samples) % len(judge.held_out))
    title = f"Same prompts and noise, {settings.steps} steps, guidance {settings.guidance:g}"
    return save(side_by_side(rows, captions, title), out / "side-by-side.png")


def _given(judge: Judge, name: str, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The row above runs that repaint: the images with their holes, the same for all of them."""
    if not isinstance(judge, Repainting):
        return {}
    if rows and not (GIVEN in rows and judge.given.equal(rows[GIVEN])):
        raise ValueError(f"side-by-side: {name} is given other images or holes than the first")
    return {GIVEN: judge.given}
