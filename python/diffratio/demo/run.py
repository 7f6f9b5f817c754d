"""The demo: sample the dense and the sparse digits model, judge and measure both; repaint holes; draw."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import PixArtTransformer2DModel

from .. import DiffRatioConfig, record_routing
from ..data.digits import TOKEN_CHANNELS, TOKENS_PER_CLASS
from ..evaluation.cost import model_cost
from ..evaluation.flops.shapes import PAPER_TEXT_TOKENS
from ..evaluation.quality import Judge, SampleSettings
from ..evaluation.target import load_target
from ..plots.recorded import kept_maps
from ..plots.style import save
from ..routing.apply import route_blocks
from ..toy import DIGITS_LT30
from .picture import by_class, compose, compose_repainted
from .repainting import repaint

PICTURE_FILE, REPAINTED_FILE, REPORT_FILE = "demo.png", "repainted.png", "demo.json"

_BATCH = 64
_LATENT = 64  # a 512 x 512 image in PixArt's latent space: 32 x 32 tokens
_REPEATS = 5
_MAP_COLUMNS = 8


def run_demo(out_dir: Path, settings: SampleSettings, *, progress: bool = True) -> dict[str, Any]:
    """Sample digits with both models, repaint holes, and write two pictures and ``demo.json``; on the GPU if
    there is one.

    Args:
        out_dir: where the files go; made if need be.
        settings: how each model is sampled.
        progress: show progress bars on standard error.

    Returns:
        The report, as in ``demo.json``: the settings; the figures of ``Judge`` for ``dense``, ``sparse`` and
        ``real`` held-out digits; the ``kept_tenths`` [L][R] that the sparse model has learned (region 0 is
        the cleanest) and ``mean_kept``; ``costs``, of each thing measured what ``model_cost`` returns;
        ``repainting``, what ``repaint`` returns; ``seconds``.
    """
    start = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dense, sparse = (load_target(path, device=device) for path in ("digits", DIGITS_LT30))
    judge = Judge.of(dense, settings, progress)
    dense_images = judge.samples(dense, "dense samples")
    with record_routing(sparse.model) as log:
        sparse_images = judge.samples(sparse, "sparse samples")
    report = {
        **vars(settings),
        "device": device,
        "dense": judge.figures(dense, dense_images),
        "sparse": judge.figures(sparse, sparse_images),
        "real": judge.real,
        "kept_tenths": sparse.kept_tenths,
        "mean_kept": sparse.mean_kept,
        "costs": costs(sparse.model, progress),
        "picture": str(out_dir / PICTURE_FILE),
    }
    kept, timesteps = kept_maps(log)
    # From clean to noisy, as the learned ratios beside them.
    shown = np.unique(np.linspace(0, len(timesteps) - 1, _MAP_COLUMNS).round().astype(int))[::-1].tolist()
    labels = judge.held_out.batch(judge.wanted)["attributes"][:, 0]
    samples = [by_class(images, labels) for images in (dense_images, sparse_images)]
    shares = kept[:, shown].float().mean(0)
    save(compose(report, samples, shares, [timesteps[i] for i in shown]), out_dir / PICTURE_FILE)
    painting = time.perf_counter()
    report["repainting"], done = repaint(settings, device, progress)
    report["repainting"] |= {
        "picture": str(save(compose_repainted(report["repainting"], done), out_dir / REPAINTED_FILE)),
        "seconds": time.perf_counter() - painting,
    }
    report["seconds"] = time.perf_counter() - start
    (out_dir / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")
    return report


def costs(digits: PixArtTransformer2DModel, progress: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Return ``model_cost`` of the digits model and of one block of PixArt-XL/2 at 512 x 512 pixels.

    A digit has 64 tokens of width 96, so little that calling the operations costs as much as doing them; the
    full-size block (random weights, 30 % compression at every timestep) is what routing is made for.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = PixArtTransformer2DModel(num_layers=1, sample_size=_LATENT, caption_channels=TOKEN_CHANNELS)
        block = route_blocks(block.eval().to(digits.device), DiffRatioConfig(compression=0.3))
    measured = (
        (f"digits, batch {_BATCH}", digits, _BATCH, TOKENS_PER_CLASS),
        ("full-size block", block, 1, PAPER_TEXT_TOKENS),
    )
    return {
        what: model_cost(model, batch=batch, text_tokens=text_tokens, repeats=_REPEATS, progress=progress)
        for what, model, batch, text_tokens in measured
    }
