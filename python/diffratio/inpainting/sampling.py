"""The steps that make a hole: guided, by any scheduler of diffusers for a diffusion with betas."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from ..baselines.calls import check_whole
from ..diffusion.sampling import guided
from ..diffusion.sizes import told_sizes
from ..routing.find import transformer_of
from .systems import Edit, System


@dataclass(frozen=True)
class Text:
    """What is to be seen, and what stands for no text."""

    tokens: Tensor
    """[B, M, E]."""
    null_tokens: Tensor | None = None
    """[B, M, E]; None: no guidance."""
    mask: Tensor | None = None
    null_mask: Tensor | None = None
    """[B, M], the tokens that count; None: all."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "Text":
        """Each tensor that there is, changed."""
        given = (self.tokens, self.null_tokens, self.mask, self.null_mask)
        return Text(*(None if x is None else change(x) for x in given))

    def both(self) -> dict[str, Tensor]:
        """The model's arguments: without text first, where there is guidance."""
        if self.null_tokens is None:
            return {"encoder_hidden_states": self.tokens} | self._masked(self.mask)
        mask = None if self.mask is None else torch.cat([self.null_mask, self.mask])
        return {"encoder_hidden_states": torch.cat([self.null_tokens, self.tokens])} | self._masked(mask)

    def _masked(self, mask: Tensor | None) -> dict[str, Tensor]:
        return {} if mask is None else {"encoder_attention_mask": mask}


@dataclass(frozen=True)
class Steps:
    """How a hole is made."""

    scheduler: SchedulerMixin
    steps: int = 100
    guidance: float = 4.5
    """1 is none; it needs null tokens."""
    strength: float = 1.0
    """Part of the steps that are taken: below 1 they begin with the picture and noise upon it."""
    generator: torch.Generator | list[torch.Generator] | None = None
    size: tuple[int, int] | None = None
    """Height and width in pixels, which PixArt-alpha at 1024 is told; None: as many as the model is given."""

    def __post_init__(self):
        if not hasattr(self.scheduler, "add_noise"):
            name = type(self.scheduler).__name__
            raise ValueError(f"scheduler: {name} is of a flow; a hole is made by a diffusion with betas")
        check_whole("steps (num_inference_steps)", self.steps, 1)
        for name, value in (("strength", self.strength), ("guidance (guidance_scale)", self.guidance)):
            if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
                raise ValueError(f"{name}={value!r} must be a number")
        if not 0 < self.strength <= 1 or self.taken < 1:
            raise ValueError(
                f"strength={self.strength} must be in (0, 1], and leave one of {self.steps} steps or more"
            )

    @property
    def taken(self) -> int:
        """How many of the steps."""
        return int(self.steps * self.strength)

    def timesteps(self, device: torch.device) -> Tensor:
        """Those that are taken, from the noisiest on."""
        self.scheduler.set_timesteps(self.steps, device=device)
        first = (self.steps - self.taken) * self.scheduler.order
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(first)
        return self.scheduler.timesteps[first:]


@torch.no_grad()
def paint(
    system: System,
    model: nn.Module,
    edit: Edit,
    text: Text,
    how: Steps,
    *,
    noise: Tensor | None = None,
    after_step: Callable[[int, Tensor, Tensor], Tensor | None] | None = None,
) -> Tensor:
    """Make what `edit.where` marks.

    Args:
        system: of `model`.
        edit: of `System.edit`.
        text: what is to be seen.
        how: scheduler, steps, guidance.
        noise: like `edit.clean`; None: drawn by the generator.
        after_step: given the number of the step, its timestep and what is there; returns that or other
            latents; None makes this step the last.

    Returns:
        [B, C, H, W], like `edit.clean` outside of `edit.where`.
    """
    clean, scheduler, plain = edit.clean, how.scheduler, transformer_of(model)
    channels, learned = clean.shape[1], _learns_variance(scheduler)
    if learned and plain.out_channels != 2 * channels:
        kind = scheduler.config.variance_type
        raise ValueError(f"scheduler: variance_type={kind!r}, but the model predicts no variance")
    timesteps = how.timesteps(clean.device)
    if noise is None:
        noise = randn_tensor(clean.shape, how.generator, clean.device, clean.dtype)
    if how.strength == 1:
        latents = noise * scheduler.init_noise_sigma
    else:
        latents = scheduler.add_noise(clean, noise, timesteps[:1].expand(len(clean)))
    guides = text.null_tokens is not None and how.guidance != 1
    text = text if guides else replace(text, null_tokens=None)
    edit = system.encoded(model, edit)
    shown = edit.twice() if guides else edit
    given = text.both() | _sizes(plain, len(shown.clean), how.size or clean.shape[-2:])
    draws = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": how.generator} if draws else {}
    for number, timestep in enumerate(timesteps):
        noisy = torch.cat([latents] * 2) if guides else latents
        noisy = scheduler.scale_model_input(noisy, timestep).to(plain.dtype)
        times = timestep.expand(len(noisy))
        predicted = system.predict(model, shown, noisy, timestep=times, **given).to(latents)
        predicted = guided(predicted, channels, how.guidance) if guides else predicted
        predicted = predicted if learned else predicted[:, :channels]
        latents = scheduler.step(predicted, timestep, latents, **options, return_dict=False)[0]
        if after_step is not None:
            changed = after_step(number, timestep, latents)
            if changed is None:
                break
            latents = changed
    return torch.where(edit.where, latents, clean)


def _sizes(model: nn.Module, batch: int, size: tuple[int, int]) -> dict[str, dict[str, Tensor | None]]:
    """What a PixArt is told of the size of its picture."""
    sizes = None
    if model.use_additional_conditions:
        sizes = torch.tensor([size], dtype=model.dtype, device=model.device).expand(batch, 2)
    return {"added_cond_kwargs": told_sizes(sizes)}


def _learns_variance(scheduler: SchedulerMixin) -> bool:
    return scheduler.config.get("variance_type") in ("learned", "learned_range")
