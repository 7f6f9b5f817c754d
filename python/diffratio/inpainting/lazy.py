"""Lazy Diffusion's PixArt (arXiv 2404.12382): an encoder sees the whole picture once, a decoder makes the
hole."""

import inspect
from collections.abc import Callable

import torch
from diffusers import ModelMixin, PixArtTransformer2DModel  # noqa: F401 - by it a pipeline knows how to load
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import PatchEmbed
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from .hole import Hole, HoleBlock
from .pixart import begun, check_pixart


def _with_arguments_of_pixart(init: Callable) -> Callable:
    """The constructor, with PixArt's arguments by their names: diffusers reads them to write a config."""
    own = list(inspect.signature(init).parameters.values())[1:-1]
    theirs = inspect.signature(PixArtTransformer2DModel.__init__)
    init.__signature__ = theirs.replace(parameters=[*theirs.parameters.values(), *own])
    return init


class ContextBlock(nn.Module):
    """A block of a plain vision transformer, which routing does not know."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads=heads, dim_head=width // heads, bias=True)
        self.mlp = FeedForward(width, activation_fn="gelu-approximate")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class LazyPixArt(PixArtTransformer2DModel):
    """PixArt that makes the tokens of a hole, in the context of all.

    context  T = E(patchify([z (1 - m) | m]))       [B, N, D], once per edit; T_h = T[hole]
    decoder  u = W [x_t[hole] | T_h] + b            [B, n, D]; PixArt's blocks and head on these, every step

    z is the picture, m its mask. W is [I | 0] at the start, so that training begins with what PixArt does.
    Arguments are those of diffusers' `PixArtTransformer2DModel`, and:

    Args:
        encoder_layers: of E.

    Example:
        >>> model = LazyPixArt.from_pixart(PixArtTransformer2DModel.from_pretrained(folder))
        >>> hole, masked = Hole.of(token_mask), torch.cat([z * (1 - m), m], dim=1)
        >>> context = model.encode(masked, hole)  # once
        >>> noise = model(x_t, text, timestep, hole=hole, context=context).sample  # every step
    """

    _no_split_modules = ["HoleBlock", "ContextBlock", "PatchEmbed"]
    why_no_baseline = (
        "it computes the tokens of holes, in which neither 2 x 2 tokens nor their number are given"
    )

    @register_to_config
    @_with_arguments_of_pixart
    def __init__(self, *, encoder_layers: int = 4, **pixart):
        super().__init__(**pixart)
        config = self.config
        for block in self.transformer_blocks:
            block.__class__ = HoleBlock  # the same modules and forward; routing tells it from PixArt's
        self.context_embed = PatchEmbed(
            height=config.sample_size,
            width=config.sample_size,
            patch_size=config.patch_size,
            in_channels=config.in_channels + 1,
            embed_dim=self.inner_dim,
            interpolation_scale=self.pos_embed.interpolation_scale,
        )
        sizes = self.inner_dim, config.num_attention_heads
        self.context_blocks = nn.ModuleList(ContextBlock(*sizes) for _ in range(encoder_layers))
        self.context_norm = nn.LayerNorm(self.inner_dim)
        self.fuse = nn.Linear(2 * self.inner_dim, self.inner_dim)
        with torch.no_grad():
            nn.init.eye_(self.fuse.weight)
            nn.init.zeros_(self.fuse.bias)

    @classmethod
    def from_pixart(cls, model: PixArtTransformer2DModel, encoder_layers: int = 4) -> "LazyPixArt":
        """The decoder with the weights of `model`, the encoder new; on its device, in its dtype.

        Raises:
            ValueError: `model` is no PixArt of diffusers, or is routed or has adapters.
        """
        check_pixart(model)
        lazy = cls.from_config({**model.config, "encoder_layers": encoder_layers})
        return begun(lazy, model, model.state_dict())

    @apply_forward_hook  # offloading brings the weights
    def encode(self, masked: Tensor, hole: Hole | None = None) -> Tensor:
        """What the hole's tokens know of the picture.

        Args:
            masked: the picture, zero in the hole, and the mask [B, C + 1, H, W].
            hole: whose tokens are taken; None: all.

        Returns:
            [B, n, D].
        """
        tokens = self.context_embed(masked)
        for block in self.context_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens)
            else:
                tokens = block(tokens)
        tokens = self.context_norm(tokens)
        return tokens if hole is None else hole.take(tokens)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        added_cond_kwargs: dict | None = None,
        encoder_attention_mask: Tensor | None = None,
        hole: Hole | None = None,
        context: Tensor | None = None,
        masked: Tensor | None = None,
        return_dict: bool = True,
    ):
        """Predict in the hole; zero elsewhere.

        Args:
            hidden_states: noisy, [B, C, H, W], of which the hole's patches are read.
            encoder_hidden_states, timestep, added_cond_kwargs, encoder_attention_mask: PixArt's.
            hole: whose tokens are made; None: all.
            context: of `encode` [B, n, D].
            masked: what `encode` is given, where there is no context yet: in training.
            return_dict: as in diffusers.

        Returns:
            `sample` [B, out_channels, H, W].

        Raises:
            ValueError: neither context nor masked, or both.
        """
        if (context is None) == (masked is None):
            raise ValueError("context must be given, or masked, of which it is made; not both")
        patch = self.config.patch_size
        batch, height, width = hidden_states.shape[0], *(side // patch for side in hidden_states.shape[-2:])
        context = self.encode(masked, hole) if context is None else context
        tokens = self.pos_embed(hidden_states)
        tokens = tokens if hole is None else hole.take(tokens)
        tokens = self.fuse(torch.cat([tokens, context], dim=-1))
        times, embedded = self.adaln_single(
            timestep, added_cond_kwargs, batch_size=batch, hidden_dtype=tokens.dtype
        )
        text = encoder_hidden_states
        if self.caption_projection is not None:
            text = self.caption_projection(text)
        if encoder_attention_mask is not None and encoder_attention_mask.ndim == 2:
            encoder_attention_mask = (1 - encoder_attention_mask.to(tokens.dtype))[:, None] * -10000.0
        valid = None if hole is None or hole.valid is None else hole.valid[:, None]
        for block in self.transformer_blocks:
            given = tokens, valid, text, encoder_attention_mask, times
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, *given)
            else:
                tokens = block(*given)
        shift, scale = (self.scale_shift_table[None] + embedded[:, None]).chunk(2, dim=1)
        rows = self.proj_out(self.norm_out(tokens) * (1 + scale) + shift)
        rows = rows if hole is None else hole.put(rows)
        sample = rows.unflatten(1, (height, width)).unflatten(-1, (patch, patch, -1))
        sample = torch.einsum("nhwpqc->nchpwq", sample).flatten(4, 5).flatten(2, 3)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)
