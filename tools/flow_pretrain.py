"""Pretraining of a small flow model: FLUX.1's blocks, joint attention and rope, on drawn shapes.

    python -m tools.flow_pretrain OUT --steps 3000 --stop 2000 --batch 32   # 11 minutes of one thread

The same seed on the same machine and versions gives the same weights; the log next to them says which they
were. OUT is a pipeline without a VAE and text encoders: the transformer reads folded pixels and the data
set's own text.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from diffratio.data import load_dataset
from diffratio.progress import progress_bar
from tools.toy_pretrain import LOG_FILE, Log, Recipe, draw, versions

FOLD, PACK = 2, 2
"""Pixels are folded into channels as a VAE's latents have them, then packed by two as in FLUX."""
HEADS, HEAD_DIM, AXES = 3, 32, (8, 12, 12)
HELD_OUT = 512


def small_flux(channels: int, text_width: int, seed: int) -> FluxTransformer2DModel:
    """Return a fresh model whose blocks begin as the identity, initialised from `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FluxTransformer2DModel(
            in_channels=channels * FOLD**2 * PACK**2,
            num_layers=2,
            num_single_layers=4,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=HEADS,
            joint_attention_dim=text_width,
            pooled_projection_dim=text_width,
            axes_dims_rope=AXES,
        )
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
                if "norm" in name or name == "proj_out":
                    nn.init.zeros_(module.weight)
    return model


def pipeline(model: FluxTransformer2DModel) -> FluxPipeline:
    """Return the pipeline around a small model: without a VAE and text encoders."""
    nothing = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return FluxPipeline(FlowMatchEulerDiscreteScheduler(), transformer=model, **nothing)


def velocity_error(model: FluxTransformer2DModel, images: Tensor, tokens: Tensor, s: Tensor, noise: Tensor):
    """Return the mean squared error [n] of the predicted velocity at noise levels `s` [n].

    `images` and `noise` are [n, C, H, W], `tokens` [n, M, E].
    """
    clean, noise = (nn.functional.pixel_unshuffle(x, FOLD) for x in (images, noise))
    n, channels, height, width = clean.shape
    clean, noise = (FluxPipeline._pack_latents(x, n, channels, height, width) for x in (clean, noise))
    level = s[:, None, None]
    predicted = model(
        torch.lerp(clean, noise, level),
        encoder_hidden_states=tokens,
        pooled_projections=tokens.mean(1),
        timestep=s,
        img_ids=FluxPipeline._prepare_latent_image_ids(n, height // PACK, width // PACK, "cpu", s.dtype),
        txt_ids=torch.zeros(tokens.shape[1], 3),
        return_dict=False,
    )[0]
    return (predicted - (noise - clean)).square().flatten(1).mean(1)


@torch.no_grad()
def held_out_error(model: FluxTransformer2DModel, dataset) -> float:
    """Return the error on held-out images, at noise and evenly spread levels that never change."""
    batch = dataset.batch(range(HELD_OUT))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch["pixel_values"].shape, generator=generator)
    levels = (torch.randperm(HELD_OUT, generator=generator) + 0.5) / HELD_OUT
    parts = zip(*(x.split(64) for x in (batch["pixel_values"], batch["tokens"], levels, noise)), strict=True)
    return torch.cat([velocity_error(model, *part) for part in parts]).mean().item()


def fit(model: FluxTransformer2DModel, recipe: Recipe, stop: int, log: Log) -> None:
    """Train `model` in place for `stop` of the recipe's steps; at the end it holds the moving average of its
    weights."""
    dataset, held_out = (load_dataset("shapes", split=split) for split in ("train", "held_out"))
    generator = torch.Generator().manual_seed(recipe.seed)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=recipe.weight_decay
    )
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / recipe.warmup, 1 - step / recipe.steps)
    )
    ema = EMAModel(parameters, decay=recipe.ema)
    log(step=0, velocity_mse=round(held_out_error(model, held_out), 5))
    losses: list[float] = []
    for step in progress_bar(range(1, stop + 1), desc="training", unit="step"):
        clean, tokens = draw(dataset, recipe.batch, recipe.drop_text, generator)
        # Logit-normal levels, one from each of `batch` parts of equal probability: less variance.
        spread = (torch.arange(recipe.batch) + torch.rand(recipe.batch, generator=generator)) / recipe.batch
        levels = torch.special.ndtri(spread.clamp(1e-4, 1 - 1e-4)).sigmoid()
        noise = torch.randn(clean.shape, generator=generator)
        loss = velocity_error(model, clean, tokens, levels, noise).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimizer.step()
        rate.step()
        ema.step(parameters)
        losses.append(loss.item())
        if step % recipe.log_every == 0 or step == stop:
            entry = {"step": step, "loss": round(sum(losses) / len(losses), 5)}
            losses.clear()
            if step % recipe.validate_every == 0 or step == stop:
                ema.store(parameters)
                ema.copy_to(parameters)
                entry["velocity_mse"] = round(held_out_error(model, held_out), 5)
                ema.restore(parameters)
            log(**entry)
    ema.copy_to(parameters)


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the pipeline and the log.")],
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and noise.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Steps after which the learning rate is zero.")] = 3000,
    stop: Annotated[int | None, typer.Option(min=1, help="Stop before, after so many steps.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images of a step.")] = 32,
) -> None:
    """Train a small FLUX from nothing."""
    dataset = load_dataset("shapes")
    model = small_flux(dataset.channels, dataset.text_width, seed)
    recipe = Recipe(seed, steps, learning_rate=1e-3, batch=batch)
    log = Log(out / LOG_FILE, echo=False)
    parameters = sum(p.numel() for p in model.parameters())
    log(model="flow-shapes", parameters=parameters, recipe=asdict(recipe), versions=versions())
    began = time.process_time()
    fit(model, recipe, stop or steps, log)
    log(finished=True, cpu_seconds=round(time.process_time() - began, 1), threads=torch.get_num_threads())
    pipeline(model).save_pretrained(out)


if __name__ == "__main__":
    typer.run(main)
