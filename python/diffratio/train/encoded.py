"""Latents and text embeddings of a data set of images, computed once and kept under `output_dir`."""

import json
from functools import cached_property
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data import CaptionedDataset
from ..diffusion.pipelines import load_pipeline
from ..files import replace_text, replacing
from ..names import on_disk
from ..progress import progress_bar
from .arguments import ArgumentError, TrainArguments
from .model import Base

CHUNK = 64
AT_ONCE = 4  # images in the VAE, whose memory grows with their pixels
ENCODED, NULL = "encoded", "null.safetensors"
SETTINGS = "settings.json"
ENCODED_BY = (
    "dataset_name",
    "image_column",
    "pretrained_model_name_or_path",
    "revision",
)
"""Arguments that latents and embeddings depend on."""


class EncodedDataset(Dataset):
    """The `count` images in a folder that `Encoders.encode` wrote: `latents` [C, h, w], `tokens` [M, E], ...

    They are read from disk one by one. `source` are the images themselves; `images` encodes others where
    that is asked for.
    """

    images = None

    def __init__(self, folder: Path, count: int, source: CaptionedDataset):
        self.folder, self.count, self.source = folder, count, source
        with _opened(folder / NULL) as file:
            self.null = {name: _plain(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(f"index={index} must lie in 0..{self.count - 1}")
        row = index % CHUNK
        with _opened(_chunk(self.folder, index // CHUNK)) as file:
            return {name: _plain(file.get_slice(name)[row]) for name in file.keys()}  # noqa: SIM118

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        return [self[index] for index in indices]


class Encoders:
    """The VAE and, for a captioned model, the text encoder of the repository that the model came from.

    They are loaded when something is to be encoded; every process encodes its share.
    """

    text_tokens = 120

    def __init__(self, arguments: TrainArguments, captioned: bool, accelerator: Accelerator, progress: bool):
        self.arguments, self.captioned = arguments, captioned
        self.length = arguments.max_sequence_length or self.text_tokens
        self.accelerator, self.device, self.progress = accelerator, accelerator.device, progress

    @torch.no_grad()
    def encode(self, dataset, part: str, count: int) -> EncodedDataset:
        """Encode the first `count` images of a data set, unless they are in `output_dir/encoded/part`.

        Raises:
            ArgumentError: an image that cannot be read, an encoder that is missing, or a folder that was
                encoded with other settings.
        """
        folder, accelerator = Path(self.arguments.output_dir) / ENCODED / part, self.accelerator
        folder.mkdir(parents=True, exist_ok=True)
        self._check_settings(dataset, count, folder)
        chunks = range(accelerator.process_index, -(-count // CHUNK), accelerator.num_processes)
        missing = [number for number in chunks if not _chunk(folder, number).exists()]
        show = self.progress and bool(missing)
        for number in progress_bar(missing, show=show, desc=f"encoding {part}", unit="chunk"):
            rows = range(number * CHUNK, min(count, (number + 1) * CHUNK))
            try:
                batch = dataset.batch(rows)
            except ValueError as error:
                raise ArgumentError(f"dataset_name={self.arguments.dataset_name!r}: {error}") from None
            tensors = self.images(batch["pixel_values"]) | self._captions(dataset.captions(rows))
            _write(tensors | {"attributes": batch["attributes"]}, _chunk(folder, number))
        if accelerator.is_main_process and not (folder / NULL).exists():
            null = self._captions([""])
            _write({name: tensor[0] for name, tensor in null.items()}, folder / NULL)
        accelerator.wait_for_everyone()
        return EncodedDataset(folder, count, dataset)

    @cached_property
    def _vae(self) -> AutoencoderKL:
        return self._load(AutoencoderKL, "vae").eval().to(self.device)

    @cached_property
    def _tokenizer_and_text(self):
        from transformers import AutoTokenizer, T5EncoderModel

        tokenizer = self._load(AutoTokenizer, "tokenizer")
        return tokenizer, self._load(T5EncoderModel, "text_encoder").eval().to(self.device)

    def _load(self, kind, subfolder: str):
        name = self.arguments.pretrained_model_name_or_path
        try:
            # diffusers would take the folder's own config for that of a subfolder that is not there.
            if on_disk(name) and not Path(name, subfolder).is_dir():
                raise OSError("no such folder")
            hub = {"revision": self.arguments.revision, "local_files_only": on_disk(name)}
            return kind.from_pretrained(name, subfolder=subfolder, **hub)
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ArgumentError(
                f"pretrained_model_name_or_path={name!r} needs a vae, and a tokenizer (with sentencepiece "
                f"installed) and text_encoder for captions, to work on images; {subfolder}: {reason}"
            ) from None

    def _check_settings(self, dataset, count: int, folder: Path) -> None:
        """Refuse a folder that was encoded from other images and captions, or by other encoders."""
        settings = {name: getattr(self.arguments, name) for name in ENCODED_BY}
        settings |= {"max_sequence_length": self.length}
        settings |= {"images": dataset.name, "count": count, "chunk": CHUNK}
        path = folder / SETTINGS
        if path.exists() and json.loads(path.read_text()) != settings:
            raise ArgumentError(
                f"output_dir={self.arguments.output_dir!r} holds images encoded with other settings: "
                f"give another folder, or delete {folder.parent}"
            )
        if self.accelerator.is_main_process:
            replace_text(path, json.dumps(settings, indent=2) + "\n")

    def images(self, pixels: Tensor) -> dict[str, Tensor]:
        """[n, 3, H, W] in [-1, 1] -> the mode of the VAE's distribution, in the model's scale."""
        vae = self._vae
        parts = [vae.encode(some.to(self.device)).latent_dist.mode() for some in pixels.split(AT_ONCE)]
        latents = torch.cat(parts)
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        latents = (latents - shift) * vae.config.scaling_factor
        size = torch.tensor(pixels.shape[-2:]).expand(len(pixels), 2)
        return {"latents": latents, "original_size": size}

    def _captions(self, captions: list[str]) -> dict[str, Tensor]:
        """`tokens` [n, M, E] and which of them count, `mask` [n, M]; nothing for a model without text."""
        if not self.captioned:
            return {}
        tokenizer, text = self._tokenizer_and_text
        found = tokenizer(
            [caption.lower().strip() for caption in captions],
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        tokens = text(found.input_ids, attention_mask=found.attention_mask)[0]
        return {"tokens": tokens, "mask": found.attention_mask}


class PipelineEncoders(Encoders):
    """The VAE and text encoders of a flow model's pipeline, through the pipeline's own methods."""

    def __init__(self, arguments: TrainArguments, base: Base, accelerator: Accelerator, progress: bool):
        self.family, self.model = base.family, base.model
        self.text_tokens = base.family.text_tokens
        super().__init__(arguments, True, accelerator, progress)

    @cached_property
    def _pipe(self):
        name = self.arguments.pretrained_model_name_or_path
        text = torch.bfloat16 if self.arguments.mixed_precision == "bf16" else torch.float32
        dtypes = {"vae": torch.float32, "default": text}
        try:
            pipe = load_pipeline(name, self.model, self.arguments.revision, dtype=dtypes)
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ArgumentError(f"pretrained_model_name_or_path={name!r}: {reason}") from None
        for part in pipe.components.values():
            if isinstance(part, nn.Module) and part is not self.model:
                part.requires_grad_(False).to(self.device)
        return pipe

    def images(self, pixels: Tensor) -> dict[str, Tensor]:
        parts = [self.family.latents(self._pipe.vae, some.to(self.device)) for some in pixels.split(AT_ONCE)]
        return {"latents": torch.cat(parts)}

    def _captions(self, captions: list[str]) -> dict[str, Tensor]:
        return self.family.encode(self._pipe, captions, self.length)


def _opened(path: Path) -> safe_open:
    """A file of tensors.

    Raises:
        ArgumentError: it is cut short or missing.
    """
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise ArgumentError(
            f"output_dir: {path} cannot be read ({error}); delete it, and it is encoded again"
        ) from None


def _plain(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _half(tensor: Tensor) -> Tensor:
    """In fp16, in bf16 where values are too large for that: hidden states of language models."""
    half = tensor.half()
    return half if half.isfinite().all() else tensor.bfloat16()


def _chunk(folder: Path, number: int) -> Path:
    return folder / f"{number:06}.safetensors"


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    """Text and latents in half precision: what the encoders compute is no more exact."""
    halves = {
        name: (_half(tensor) if tensor.is_floating_point() else tensor.long()).cpu().contiguous()
        for name, tensor in tensors.items()
    }
    with replacing(path) as beside:
        save_file(halves, beside)
