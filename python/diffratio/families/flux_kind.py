"""What FLUX.1 and the families after it have in common."""

from torch import Tensor

from diffratio_kernels.blocks.stream import Call, Layout, Stream

from .mlp_modules import parallel
from .modules import ModuleSpec, clipped, counting, key_mask, pairs, span, told
from .parts import ADDED, Parts
from .references import target_tokens


def clipped_text(image, text):
    """What joint blocks return: of both streams the text alone is clipped."""
    return clipped(text), image


class SequenceSpec(ModuleSpec):
    """Of blocks whose reference images, where there are some, stand behind the image."""

    timestep_units = "noise"
    gate: str | None = None
    """Of the activation of single blocks' MLPs, as of `Activation`."""

    def layout(self, model, given):
        """How long the text is, and how many image tokens come before the reference images."""
        text = given.get("encoder_hidden_states")
        return None if text is None else text.shape[1], target_tokens(given.get("img_ids"))

    def taken(self, block, **given) -> tuple[Parts, Tensor | None]:
        """The block's parts and the mask of keys among the arguments of its attention; others are refused."""
        given = {name: dict(value or {}) for name, value in given.items()}
        masks = [value.pop("attention_mask", None) for value in given.values()]
        return self.refuse(block, **given), key_mask("attention_mask", masks[0])

    def whole(self, block, x, length: int, valid: Tensor | None) -> Layout | None:
        """The layout of one sequence [text, image, references] of which the image is routed."""
        target = told(block, self)[1]
        return span(block, x, length, None if target is None else length + target, valid)

    def joint(self, block, parts: Parts, tokens, modulation, rope, valid: Tensor | None = None) -> Call:
        """Of two streams with one rope table [text, image].

        Args:
            block: a routed one.
            parts: its own.
            tokens: of image and text.
            modulation: of image and text, [B, 6, D] each.
            valid: a `key_mask` of [text, image].
        """
        (x, text), eps = tokens, block.norm2.eps
        length, layout = text.shape[1], span(block, x, 0, told(block, self)[1])
        own, other = pairs(rope, length), pairs(rope, 0, length)
        text = Stream(text, modulation[1], parts.attention(block.attn, other, ADDED, fused=True),
                      parts.mlp(block.ff_context), eps, eps)  # fmt: skip
        text.valid = counting(block, valid, 0, length)
        attention = parts.attention(block.attn, own, fused=True)
        image = Stream(x, modulation[0], attention, parts.mlp(block.ff), eps, eps)
        return Call(image, text=text, layout=layout, output=clipped_text)

    def single(self, block, parts: Parts, x, modulation, rope, layout, output=clipped) -> Call:
        """Of one sequence with one rope table."""
        mlp = parallel(block, parts, self.gate)
        stream = Stream(x, modulation, parts.attention(block.attn, pairs(rope), fused=True), mlp)
        return Call(stream, layout=layout, output=output)
