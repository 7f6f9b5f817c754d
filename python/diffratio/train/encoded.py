"""Latents and text embeddings of a data set of images, computed once and kept under `output_dir`."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from .arguments import ArgumentError, TrainArguments

CHUNK = 64
NULL = "null.safetensors"


class EncodedDataset(Dataset):
    """Items of an `encode`d data set, read from disk one by one: `latents` [C, h, w], `tokens` [M, E], ..."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count
        with safe_open(folder / NULL, "pt") as file:
            self.null = {name: _plain(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(f"index={index} must lie in 0..{self.count - 1}")
        row = index % CHUNK
        with safe_open(_chunk(self.folder, index // CHUNK), "pt") as file:
            return {name: _plain(file.get_slice(name)[row]) for name in file.keys()}  # noqa: SIM118

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        return [self[index] for index in indices]


class Encoders:
    """The VAE and, for a captioned model, the text encoder of the repository that the model came from."""

    def __init__(self, arguments: TrainArguments, captioned: bool, device: torch.device):
        name, revision = arguments.pretrained_model_name_or_path, arguments.revision
        self.device, self.length, self.text = device, arguments.max_sequence_length, None
        try:
            self.vae = (
                AutoencoderKL.from_pretrained(name, subfolder="vae", revision=revision).eval().to(device)
            )
            if captioned:
                from transformers import AutoTokenizer, T5EncoderModel

                self.tokenizer = AutoTokenizer.from_pretrained(name, subfolder="tokenizer", revision=revision)
                text = T5EncoderModel.from_pretrained(name, subfolder="text_encoder", revision=revision)
                self.text = text.eval().to(device)
        except (OSError, ValueError) as error:
            raise ArgumentError(
                f"pretrained_model_name_or_path={name!r} needs a vae, and a tokenizer and text_encoder for "
                f"captions, to work on images: {str(error).splitlines()[0]}"
            ) from None

    def images(self, pixels: Tensor) -> dict[str, Tensor]:
        """[n, 3, H, W] in [-1, 1] -> the mode of the VAE's distribution, in the model's scale."""
        config = self.vae.config
        latents = self.vae.encode(pixels.to(self.device)).latent_dist.mode()
        latents = (latents - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor
        size = torch.tensor(pixels.shape[-2:]).expand(len(pixels), 2)
        return {"latents": latents, "original_size": size.contiguous()}

    def captions(self, captions: list[str]) -> dict[str, Tensor]:
        """`tokens` [n, M, E] and which of them count, `mask` [n, M]; nothing for a model without text."""
        if self.text is None:
            return {}
        found = self.tokenizer(
            [caption.lower().strip() for caption in captions],
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        tokens = self.text(found.input_ids, attention_mask=found.attention_mask)[0]
        return {"tokens": tokens, "mask": found.attention_mask}


@torch.no_grad()
def encode(
    dataset, encoders: Encoders, folder: Path, count: int, accelerator: Accelerator, progress: bool
) -> EncodedDataset:
    """The first `count` items of a data set; every process encodes its share of what is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = range(accelerator.process_index, -(-count // CHUNK), accelerator.num_processes)
    missing = [number for number in chunks if not _chunk(folder, number).exists()]
    for number in tqdm(
        missing, desc=f"encoding {folder.name}", unit="chunk", disable=not progress or not missing
    ):
        rows = range(number * CHUNK, min(count, (number + 1) * CHUNK))
        batch = dataset.batch(rows)
        tensors = encoders.images(batch["pixel_values"]) | encoders.captions(dataset.captions(rows))
        _write(tensors | {"attributes": batch["attributes"]}, _chunk(folder, number))
    if accelerator.is_main_process:
        null = encoders.captions([""])
        _write({name: tensor[0] for name, tensor in null.items()}, folder / NULL)
    accelerator.wait_for_everyone()
    return EncodedDataset(folder, count)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _chunk(folder: Path, number: int) -> Path:
    return folder / f"{number:06}.safetensors"


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    """Text and latents in half precision: what the encoders compute is no more exact."""
    beside = path.with_suffix(".partial")
    halves = {
        name: (tensor.half() if tensor.is_floating_point() else tensor.long()).cpu().contiguous()
        for name, tensor in tensors.items()
    }
    save_file(halves, beside)
    beside.replace(path)
