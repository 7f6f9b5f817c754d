"""Inpainting in the call conventions of diffusers: pictures in, pictures out, masks white where to paint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor

from ..baselines.calls import check_whole
from ..routing.find import transformer_of
from .compose import pasted, poisson_blended
from .masks import pooled
from .pictures import OUTPUTS, Pictures, mask_of, output_of, picture_of, resized, resized_mask
from .sampling import Steps, Text, paint
from .systems import Edit, Frame, system_of


class DiffRatioInpaintPipeline(DiffusionPipeline):
    """Repaints the masked part of pictures; everything else comes back as it was, bit by bit.

    Args:
        tokenizer, text_encoder: of PixArt; None where text is given as `prompt_embeds`.
        vae: None for a model that works on pixels.
        transformer: a model of the system.
        scheduler: of the model, for a diffusion with betas.
        system: "lazy", "image" or "crop".

    Raises:
        ValueError: an unknown system, or a transformer that is not of it.

    Example:
        >>> pipe = PixArtAlphaPipeline.from_pretrained(folder)
        >>> parts = pipe.components | {"transformer": LazyPixArt.from_pretrained(trained)}
        >>> pipe = DiffRatioInpaintPipeline(**parts, system="lazy")
        >>> picture = pipe("a red fox", image=photo, mask_image=mask).images[0]
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["tokenizer", "text_encoder", "vae"]
    _callback_tensor_inputs = ["latents"]

    def __init__(self, tokenizer, text_encoder, vae, transformer, scheduler, system: str = "lazy"):
        super().__init__()
        reason = system_of(system).why_not(transformer)
        if reason is not None:
            raise ValueError(f"transformer: {reason}")
        self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder, vae=vae)
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.register_to_config(system=system)
        self.dataset = None  # of `pipeline_of`: whose text a model on pixels reads
        self.vae_scale_factor = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Pictures | None = None,
        mask_image: Pictures | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 100,
        guidance_scale: float = 4.5,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 120,
    ):
        """Repaint `image` where `mask_image` is white.

        Args:
            prompt: what is to be seen there, one for all pictures or one of each.
            image: one or a batch: PIL, an array [H, W, C] or a tensor [C, H, W] in [0, 1].
            mask_image: of the same size; white, from one half on, is repainted. One for all or one of each.
            negative_prompt: what guidance leads away from; None is no text.
            height, width: at which the model works, multiples of a token's side; None: those of the picture,
                rounded up. The result has the picture's size.
            strength: below 1 the hole begins with what is there and noise upon it.
            num_inference_steps: of the scheduler; with strength below 1 that part of them is taken.
            guidance_scale: weight of classifier-free guidance, 1 is none. The context of the picture is the
                same with and without the text.
            num_images_per_prompt: results for each picture.
            generator: of the noise.
            latents: noise to begin with, of the shape that the model works on.
            prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask:
                text that is encoded already.
            output_type: "pil", "np", "pt", or "latent": what the model made, with nothing pasted.
            return_dict: whether to return an `ImagePipelineOutput`; else a tuple.
            callback_on_step_end: called with the pipeline, the number of the step, its timestep and a dict
                of `callback_on_step_end_tensor_inputs`; latents that it returns in one take their place, and
                `pipe._interrupt = True` makes this step the last.
            max_sequence_length: of the prompt, in tokens.

        Returns:
            `images`: all results for the first picture, then all for the second ...

        Raises:
            ValueError: an argument that is missing or does not fit another one; the text names it.
        """
        system, model = system_of(self.config.system), transformer_of(self.transformer)
        _check(image, mask_image, output_type, callback_on_step_end_tensor_inputs)
        check_whole("num_images_per_prompt", num_images_per_prompt, 1)
        check_whole("max_sequence_length", max_sequence_length, 1)
        how = Steps(self.scheduler, num_inference_steps, guidance_scale, strength, generator)
        picture = picture_of(image, system.channels(model) if self.vae is None else 3)
        mask = mask_of(mask_image, picture)
        masks = prompt_attention_mask, negative_prompt_attention_mask
        given = Prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, *masks)
        text = self.text(given, guidance_scale, max_sequence_length)
        counted = {"image": picture, "mask_image": mask, "prompt": text.tokens}
        if text.null_tokens is not None:
            counted["negative_prompt"] = text.null_tokens
        rows = _Rows.of(num_images_per_prompt, **counted)
        picture, mask, text = rows(picture), rows(mask), text.map(rows)

        _check_generator(generator, rows.total)
        size = self.working_size(picture, height, width)
        frame = self.framed(picture, mask, size)
        edit = self.edit(frame)
        if latents is not None and getattr(latents, "shape", None) != edit.clean.shape:
            got = tuple(latents.shape) if isinstance(latents, Tensor) else f"a {type(latents).__name__}"
            raise ValueError(f"latents must have the shape {tuple(edit.clean.shape)}, got {got}")
        how = replace(how, size=frame.pictures.shape[-2:])
        self._interrupt = False
        with self.progress_bar(total=how.taken) as bar:

            def after_step(number: int, timestep: Tensor, latents: Tensor) -> Tensor | None:
                bar.update()
                if callback_on_step_end is None:
                    return latents
                shown = {"latents": latents} if callback_on_step_end_tensor_inputs else {}
                changed = callback_on_step_end(self, number, timestep, shown) or {}
                return None if self._interrupt else changed.get("latents", latents)

            made = paint(system, self.transformer, edit, text, how, noise=latents, after_step=after_step)
        images = made
        if output_type != "latent":
            images = output_of(self.composed(frame, made, picture, mask, size), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def text(self, given: "Prompts", guidance: float, length: int) -> Text:
        """What the model reads, in `length` tokens; with that of no text where guidance is not 1."""
        guided = guidance != 1
        if given.embeds is not None:
            if guided and given.negative_embeds is None:
                raise ValueError(
                    f"negative_prompt_embeds must be given beside prompt_embeds: guidance_scale is {guidance}"
                )
            wants, shape = transformer_of(self.transformer).config.caption_channels, given.embeds.shape
            if len(shape) != 3 or wants not in (None, shape[2]):
                raise ValueError(f"prompt_embeds must be [B, M, {wants}], got the shape {tuple(shape)}")
            text = Text(given.embeds, given.negative_embeds, given.mask, given.negative_mask)
        elif self.dataset is not None:
            null = self.dataset.null_tokens[None]
            null = torch.cat([self.dataset.encode([one]) if one else null for one in given.negatives])
            text = Text(self.dataset.encode(given.prompts), null)
        elif self.tokenizer is None or self.text_encoder is None:
            raise ValueError("prompt: there is no text encoder here, so prompt_embeds must be given")
        else:
            from diffusers import PixArtAlphaPipeline  # needs transformers

            parts = self.tokenizer, self.text_encoder, self.vae, self.transformer, self.scheduler
            tokens, mask, null, null_mask = PixArtAlphaPipeline(*parts).encode_prompt(
                given.prompts, guided, negative_prompt=given.negatives, device=self._execution_device,
                clean_caption=False, max_sequence_length=length,
            )  # fmt: skip
            text = Text(tokens, null, mask, null_mask)
        device, dtype = self._execution_device, transformer_of(self.transformer).dtype
        return text.map(lambda x: x.to(device, dtype if x.is_floating_point() else x.dtype))

    def working_size(self, picture: Tensor, height: int | None, width: int | None) -> tuple[int, int]:
        """At which the model works."""
        unit = self.unit
        for name, asked in (("height", height), ("width", width)):
            if asked is not None and (not isinstance(asked, int) or asked < unit or asked % unit):
                raise ValueError(f"{name}={asked!r} must be a multiple of {unit}")
        own = (-(-side // unit) * unit for side in picture.shape[-2:])
        return tuple(asked or side for asked, side in zip((height, width), own, strict=True))

    @property
    def unit(self) -> int:
        """Pixels of a token's side."""
        return self.vae_scale_factor * transformer_of(self.transformer).config.patch_size

    def framed(self, picture: Tensor, mask: Tensor, size: tuple[int, int]) -> Frame:
        """What the system looks at, pixels in [-1, 1], of pictures [B, C, H, W] in [0, 1]."""
        pixels = resized(picture.to(self._execution_device, torch.float32), size) * 2 - 1
        return system_of(self.config.system).frame(pixels, resized_mask(mask, size), self.unit)

    @torch.no_grad()
    def edit(self, frame: Frame) -> Edit:
        """What its model is given."""
        system, model = system_of(self.config.system), transformer_of(self.transformer)
        clean, hole = frame.pictures, pooled(frame.mask, self.vae_scale_factor)
        if self.vae is not None:
            latents = self.vae.encode(clean.to(self.vae.dtype)).latent_dist.mode().float()
            clean = latents * self.vae.config.scaling_factor
        return system.edit(Frame(clean, hole), model.config.patch_size)

    @torch.no_grad()
    def composed(self, frame: Frame, made: Tensor, picture: Tensor, mask: Tensor, size) -> Tensor:
        """`picture` with what was made in the mask."""
        if self.vae is not None:
            made = self.vae.decode(made.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        made = frame.restore(made.to(frame.pictures), resized(picture.to(frame.pictures), size) * 2 - 1)
        made = resized(made / 2 + 0.5, picture.shape[-2:]).clamp(0, 1)
        if self.vae is not None:  # it changes known pixels a little, too: that would be a seam
            made = poisson_blended(made, picture.to(made), mask.to(made.device)).clamp(0, 1)
        return pasted(made, picture, mask.to(picture.device))


@dataclass(frozen=True)
class Prompts:
    """Text, or what an encoder made of it."""

    prompt: str | list[str] | None
    negative: str | list[str] | None = None
    embeds: Tensor | None = None
    negative_embeds: Tensor | None = None
    mask: Tensor | None = None
    negative_mask: Tensor | None = None

    def __post_init__(self):
        for name, texts in (("prompt", self.prompt), ("negative_prompt", self.negative)):
            if texts is not None and not all(isinstance(one, str) for one in _listed(texts)):
                raise ValueError(f"{name} must be a text or a list of texts, got {texts!r}")
        if (self.prompt is None) == (self.embeds is None):
            raise ValueError("prompt must be given, or prompt_embeds; not both")
        if self.embeds is not None and self.negative is not None:
            raise ValueError("negative_prompt goes with prompt, negative_prompt_embeds with prompt_embeds")
        if self.embeds is None and not self.prompts:
            raise ValueError("prompt must be one or more, got none")
        if self.embeds is None and len(self.negatives) != len(self.prompts):
            raise ValueError(
                f"negative_prompt: {len(self.negatives)} of them for {len(self.prompts)} prompts"
            )
        if (self.mask is None) != (self.negative_mask is None) and self.negative_embeds is not None:
            raise ValueError("prompt_attention_mask and negative_prompt_attention_mask go together")
        encoded = {
            "negative_prompt_embeds": self.negative_embeds,
            "prompt_attention_mask": self.mask,
            "negative_prompt_attention_mask": self.negative_mask,
        }
        for name, one in encoded.items():
            if one is None:
                continue
            if self.embeds is None:
                raise ValueError(f"{name} goes with prompt_embeds, and there are none")
            own, other = tuple(one.shape), tuple(self.embeds.shape)
            if own[1:] != other[1 : len(own)]:
                raise ValueError(f"{name} of shape {own} does not fit prompt_embeds of shape {other}")

    @property
    def prompts(self) -> list[str]:
        """As a list; empty where there are embeddings."""
        return [] if self.prompt is None else _listed(self.prompt)

    @property
    def negatives(self) -> list[str]:
        """One for each prompt."""
        negative = self.negative or ""
        return [negative] * len(self.prompts) if isinstance(negative, str) else list(negative)


@dataclass(frozen=True)
class _Rows:
    """How what is given for one picture, or for each, becomes the rows of a batch."""

    pictures: int
    copies: int

    @staticmethod
    def of(copies: int, **given: Tensor) -> "_Rows":
        counts = {name: len(x) for name, x in given.items()}
        pictures = max(counts.values())
        if wrong := {name: count for name, count in counts.items() if count not in (1, pictures)}:
            name, count = next(iter(wrong.items()))
            raise ValueError(f"{name}: {count} where there are {pictures} ({counts}); must be one or as many")
        return _Rows(pictures, copies)

    @property
    def total(self) -> int:
        return self.pictures * self.copies

    def __call__(self, x: Tensor) -> Tensor:
        whole = x.expand(self.pictures, *x.shape[1:]) if len(x) == 1 else x
        return whole.repeat_interleave(self.copies, dim=0)


def _check(image, mask_image, output_type: str, tensor_inputs: Sequence[str]) -> None:
    for name, given in (("image", image), ("mask_image", mask_image)):
        if given is None:
            raise ValueError(f"{name} must be given")
    if output_type not in OUTPUTS:
        raise ValueError(f"output_type={output_type!r} must be one of {', '.join(OUTPUTS)}")
    known = DiffRatioInpaintPipeline._callback_tensor_inputs
    if unknown := set(tensor_inputs) - set(known):
        raise ValueError(f"callback_on_step_end_tensor_inputs: {sorted(unknown)} must be of {known}")


def _check_generator(generator, pictures: int) -> None:
    listed = generator if isinstance(generator, list) else [generator] * pictures
    if generator is not None and not all(isinstance(one, torch.Generator) for one in listed):
        raise ValueError(f"generator must be a torch.Generator or a list of them, got {generator!r}")
    if len(listed) != pictures:
        raise ValueError(f"generator: {len(listed)} of them for {pictures} pictures")


def _listed(texts: str | Sequence[str]) -> list:
    return [texts] if isinstance(texts, str) or not isinstance(texts, Sequence) else list(texts)
