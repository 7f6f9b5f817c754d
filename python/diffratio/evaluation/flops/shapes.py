"""The sizes a FLOP count needs, from a preset, a diffusers model or its config."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

PAPER_TEXT_TOKENS = 120
"""PixArt-alpha's caption length. The paper's FLOPs column fits this one, not the 300 of PixArt-Sigma."""


@dataclass(frozen=True)
class TransformerShape:
    """Sizes of a PixArt-like (adaLN-single, text) or DiT-like (adaLN-Zero, class) transformer.

    Args:
        layers, width, heads: L blocks of D channels in H heads.
        tokens: N image tokens of one sample.
        text_tokens: M text tokens of one sample; 0 means a block without cross-attention.
        mlp_ratio: hidden width of the MLP over D.
        caption_channels: width of the text encoder when a two-layer projection follows it, else None.
        context_width: input width of the text keys and values; None means D.
        in_channels, out_channels, patch: of the latent; a token covers patch x patch pixels of it.
        adaln: "single" (one modulation for all blocks) or "zero" (one per block).
        size_conditions: adaLN-single also embeds height, width and aspect ratio (PixArt-alpha at 1024 px).

    Raises:
        ValueError: a size that cannot be; the message starts with the name of the argument.
    """

    layers: int
    width: int
    heads: int
    tokens: int
    text_tokens: int = 0
    mlp_ratio: float = 4
    caption_channels: int | None = None
    context_width: int | None = None
    in_channels: int = 4
    out_channels: int = 8
    patch: int = 2
    adaln: str = "single"
    size_conditions: bool = False

    def __post_init__(self) -> None:
        if self.text_tokens < 0:
            raise ValueError(f"text_tokens: {self.text_tokens} must not be negative")
        for name, value in vars(self).items():
            if name not in ("text_tokens", "adaln", "size_conditions") and value is not None and value <= 0:
                raise ValueError(f"{name}: {value} must be positive")
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width {self.width}")
        if self.adaln not in ("single", "zero"):
            raise ValueError(f"adaln: {self.adaln!r} is neither 'single' nor 'zero'")
        if self.adaln == "zero" and self.text_tokens:
            raise ValueError(f"text_tokens: {self.text_tokens}, but a class-conditional DiT reads no text")

    @property
    def mlp_width(self) -> int:
        """Hidden channels of the MLP."""
        return int(self.width * self.mlp_ratio)

    @classmethod
    def from_model(
        cls, model: Any, height: int | None = None, width: int | None = None, text_tokens: int | None = None
    ) -> "TransformerShape":
        """Sizes of a diffusers PixArtTransformer2DModel or DiTTransformer2DModel.

        Args:
            model: the transformer; only its class and its config are read.
            height, width: of the latent, in latent pixels; None means the config's `sample_size`.
            text_tokens: M; None means 120 with text (the paper's) and 0 without.

        Raises:
            ValueError: another class, or sizes that do not fit; the message names the argument.
        """
        known = [base.__name__ for base in type(model).__mro__ if base.__name__ in FAMILIES]
        name = known[0] if known else type(model).__name__
        return cls.from_config({**model.config, "_class_name": name}, height, width, text_tokens)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        height: int | None = None,
        width: int | None = None,
        text_tokens: int | None = None,
    ) -> "TransformerShape":
        """The same as `from_model` from the model's `config.json`, so no weight has to exist."""
        name = config.get("_class_name")
        if name not in FAMILIES:
            raise ValueError(f"model: {name!r} is not one of {', '.join(FAMILIES)}")
        adaln = FAMILIES[name]
        sizes = [*_SIZES, "cross_attention_dim"] if adaln == "single" else _SIZES
        if not config.keys() >= {*sizes, "out_channels", "activation_fn"}:  # diffusers writes all of them
            import diffusers

            parameters = signature(getattr(diffusers, name)).parameters.values()
            config = {**{one.name: one.default for one in parameters}, **config}
        if config["activation_fn"] not in ("gelu", "gelu-approximate"):
            raise ValueError(f"model: activation_fn {config['activation_fn']!r} is not a plain GELU MLP")
        for key in sizes:
            if not isinstance(config[key], int):
                raise ValueError(f"model: {key} is {config[key]!r}, not an integer")
        if text_tokens is None:
            text_tokens = PAPER_TEXT_TOKENS if adaln == "single" else 0
        sample, sized = config["sample_size"], config.get("use_additional_conditions")
        if sized is None:  # diffusers decides by the sample size then
            sized = adaln == "single" and sample == 128
        out_channels = config["out_channels"]
        shape = cls(
            layers=config["num_layers"],
            width=config["num_attention_heads"] * config["attention_head_dim"],
            heads=config["num_attention_heads"],
            tokens=1,
            text_tokens=text_tokens,
            caption_channels=config.get("caption_channels"),
            context_width=config.get("cross_attention_dim"),
            in_channels=config["in_channels"],
            out_channels=config["in_channels"] if out_channels is None else out_channels,
            patch=config["patch_size"],
            adaln=adaln,
            size_conditions=sized,
        )
        return shape.resized(sample if height is None else height, sample if width is None else width)

    def resized(self, height: int, width: int) -> "TransformerShape":
        """The same transformer on a latent of height x width latent pixels."""
        for name, value in (("height", height), ("width", width)):
            if value <= 0 or value % self.patch:
                raise ValueError(f"{name}: {value} is not a positive multiple of the patch size {self.patch}")
        return replace(self, tokens=(height // self.patch) * (width // self.patch))


FAMILIES = {"PixArtTransformer2DModel": "single", "DiTTransformer2DModel": "zero"}
"""Classes whose FLOPs have formulas -> their modulation; models of other families are run for a count."""
_SIZES = ["num_attention_heads", "attention_head_dim", "num_layers", "in_channels"]
_SIZES += ["patch_size", "sample_size"]

_PIXART_XL = TransformerShape(28, 1152, 16, 1024, PAPER_TEXT_TOKENS, caption_channels=4096)
_DIT_XL = TransformerShape(28, 1152, 16, 256, adaln="zero")
PRESETS = {
    "pixart-xl-512": _PIXART_XL,
    "pixart-xl-1024": replace(_PIXART_XL, tokens=4096),
    "dit-xl-256": _DIT_XL,
    "dit-xl-512": replace(_DIT_XL, tokens=1024),
}
"""PixArt-XL/2, as in the paper's Table 1 at 512 px, and DiT-XL/2 as diffusers runs it, by side in pixels."""
