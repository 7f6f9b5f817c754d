"""Latents and text embeddings of a data set of images, computed once and kept under `output_dir`."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from ..names import on_disk
from ..progress import progress_bar
from .arguments import ArgumentError, TrainArguments
from .run_log import replace_text

CHUNK = 64
AT_ONCE = 4  # images in the VAE, whose memory grows with their pixels
NULL = "null.safetensors"
SETTINGS = "settings.json"


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
    """The VAE and, for a captioned model, the text encoder of the repository that the model came from.

    They are loaded when something is to be encoded.
    """

    def __init__(self, arguments: TrainArguments, captioned: bool, device: torch.device):
        self.arguments, self.captioned, self.device = arguments, captioned, device

    @cached_property
    def vae(self) -> AutoencoderKL:
        return self._load(AutoencoderKL, "vae").eval().to(self.device)

    @cached_property
    def tokenizer(self):
        from transformers import AutoTokenizer

        return self._load(AutoTokenizer, "tokenizer")

    @cached_property
    def text(self):
        from transformers import T5EncoderModel

        return self._load(T5EncoderModel, "text_encoder").eval().to(self.device)

    def _load(self, kind, subfolder: str):
        name = self.arguments.pretrained_model_name_or_path
        try:
            # diffusers would take the folder's own config for that of a subfolder that is not there.
            if on_disk(name) and not Path(name, subfolder).is_dir():
                raise OSError("no such folder")
            return kind.from_pretrained(
                name,
                subfolder=subfolder,
                revision=self.arguments.revision,
                local_files_only=on_disk(name),
            )
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ArgumentError(
                f"pretrained_model_name_or_path={name!r} needs a vae, and a tokenizer (with sentencepiece "
                f"installed) and text_encoder for captions, to work on images; {subfolder}: {reason}"
            ) from None

    def check_settings(self, dataset, count: int, folder: Path, write: bool) -> None:
        """What lies in `folder` was encoded from the same images and captions, by the same encoders."""
        names = ("dataset_name", "pretrained_model_name_or_path", "revision", "max_sequence_length")
        settings = {name: getattr(self.arguments, name) for name in names}
        settings |= {"images": dataset.name, "count": count, "chunk": CHUNK}
        if self.arguments.image_column is not None:
            settings["image_column"] = self.arguments.image_column
        path = folder / SETTINGS
        if path.exists() and json.loads(path.read_text()) != settings:
            raise ArgumentError(
                f"output_dir={self.arguments.output_dir!r} holds images encoded with other settings: "
                f"give another folder, or delete {folder.parent}"
            )
        if write:
            replace_text(path, json.dumps(settings, indent=2) + "\n")

    def images(self, pixels: Tensor) -> dict[str, Tensor]:
        """[n, 3, H, W] in [-1, 1] -> the mode of the VAE's distribution, in the model's scale."""
        config = self.vae.config
        parts = [self.vae.encode(some.to(self.device)).latent_dist.mode() for some in pixels.split(AT_ONCE)]
        latents = torch.cat(parts)
        latents = (latents - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor
        size = torch.tensor(pixels.shape[-2:]).expand(len(pixels), 2)
        return {"latents": latents, "original_size": size.contiguous()}

    def captions(self, captions: list[str]) -> dict[str, Tensor]:
        """`tokens` [n, M, E] and which of them count, `mask` [n, M]; nothing for a model without text."""
        if not self.captioned:
            return {}
        found = self.tokenizer(
            [caption.lower().strip() for caption in captions],
            padding="max_length",
            max_length=self.arguments.max_sequence_length,
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
    encoders.check_settings(dataset, count, folder, write=accelerator.is_main_process)
    chunks = range(accelerator.process_index, -(-count // CHUNK), accelerator.num_processes)
    missing = [number for number in chunks if not _chunk(folder, number).exists()]
    show = progress and bool(missing)
    for number in progress_bar(missing, show=show, desc=f"encoding {folder.name}", unit="chunk"):
        rows = range(number * CHUNK, min(count, (number + 1) * CHUNK))
        try:
            batch = dataset.batch(rows)
        except ValueError as error:
            raise ArgumentError(f"dataset_name={encoders.arguments.dataset_name!r}: {error}") from None
        tensors = encoders.images(batch["pixel_values"]) | encoders.captions(dataset.captions(rows))
        _write(tensors | {"attributes": batch["attributes"]}, _chunk(folder, number))
    if accelerator.is_main_process and not (folder / NULL).exists():
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
