"""The model: diffusers' own PixArt transformer at 64 tokens, and how it is made, saved and loaded."""

from pathlib import Path

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, PixArtTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .digits import SIZE, TOKEN_CHANNELS

ASSETS = Path(__file__).parent / "assets"
CLASS_TOKENS_FILE = "class_tokens.safetensors"

HEADS = 4
HEAD_DIM = 24
LAYERS = 5  # two models of 0.85 M fp32 parameters stay below 8 MB

_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
}


def build_model(seed: int) -> PixArtTransformer2DModel:
    """Return a fresh model, initialised from ``seed`` as PixArt does.

    diffusers' default initialisation learns little in a short training; PixArt's own is Xavier for linear
    layers, small normal embeddings, and zeros where the text and the prediction leave the network.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = PixArtTransformer2DModel(
            num_attention_heads=HEADS,
            attention_head_dim=HEAD_DIM,
            in_channels=1,
            out_channels=1,
            num_layers=LAYERS,
            cross_attention_dim=HEADS * HEAD_DIM,
            sample_size=SIZE,
            patch_size=1,
            use_additional_conditions=False,
            caption_channels=TOKEN_CHANNELS,
        )
        _pixart_init(model)
    return model


def _pixart_init(model: PixArtTransformer2DModel) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    patch = model.pos_embed.proj
    nn.init.xavier_uniform_(patch.weight.view(patch.out_channels, -1))
    nn.init.zeros_(patch.bias)
    for embedding in (model.adaln_single, model.caption_projection):
        for module in embedding.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
    for block in model.transformer_blocks:
        nn.init.zeros_(block.attn2.to_out[0].weight)
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)


def save_model(model: PixArtTransformer2DModel, class_tokens: Tensor, folder: Path) -> None:
    """Write ``model`` in diffusers' layout, with the tokens ``[11, 4, 32]`` that it was trained on."""
    model.register_to_config(_name_or_path="")  # diffusers would write the folder that it was loaded from
    model.save_pretrained(folder, safe_serialization=True)
    save_file({"class_tokens": class_tokens.contiguous()}, folder / CLASS_TOKENS_FILE)


def load_model(folder: Path, device: torch.device | str = "cpu") -> tuple[PixArtTransformer2DModel, Tensor]:
    """Return ``(model, class_tokens)`` that ``save_model`` wrote to ``folder``, for inference."""
    if not (folder / CLASS_TOKENS_FILE).is_file():
        raise FileNotFoundError(
            f"folder {str(folder)!r} holds no demo model ({CLASS_TOKENS_FILE} is missing)"
        )
    model = PixArtTransformer2DModel.from_pretrained(
        folder, local_files_only=True, low_cpu_mem_usage=False, use_safetensors=True
    )
    class_tokens = load_file(folder / CLASS_TOKENS_FILE)["class_tokens"]
    return model.eval().to(device), class_tokens.to(device)


def noise_schedule() -> DDPMScheduler:
    """Return the schedule that training adds noise with."""
    return DDPMScheduler(**_SCHEDULE)


def sampling_scheduler() -> DPMSolverMultistepScheduler:
    """Return DPM-Solver++ (second order) on the training schedule.

    Trailing timesteps start from pure noise, as training does; the predicted image is clipped to [-1, 1] at
    every step, without which guidance drives pixels out of range.
    """
    return DPMSolverMultistepScheduler(
        **_SCHEDULE,
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
        thresholding=True,
        sample_max_value=1.0,
    )
